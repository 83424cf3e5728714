"""Every op against its reference, over the cases and tolerances its spec declares."""

from __future__ import annotations

import pytest
import torch

from spark_kernels import active, spec

pytestmark = pytest.mark.usefixtures("poison")

CASES = [
    pytest.param(op, sizes, dtype, id=f"{op}-{'x'.join(map(str, sizes.values()))}-{dtype}"[:60])
    for op in spec.names()
    for sizes in spec.load(op).cases
    for dtype in spec.load(op).tolerance
]


@pytest.mark.parametrize(("op", "sizes", "dtype"), CASES)
def test_op_agrees_with_its_reference(op: str, sizes: dict[str, int], dtype: torch.dtype) -> None:
    declared = spec.load(op)
    tolerance = declared.tolerance[dtype]
    inputs, same = (declared.init(sizes, dtype, torch.Generator().manual_seed(1)) for _ in range(2))
    got, want = declared.call(**inputs), declared.reference(**same)
    # an output may be a list: `kv_fork` has one tensor a buffer
    for place, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        message = f"{op}, output {place}, {dict(sizes)}"
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda m, s=message: f"{s}: {m}"
        )


@pytest.mark.parametrize("op", spec.names())
def test_spec_is_complete(op: str) -> None:
    declared = spec.load(op)
    axes = {
        axis for a in (*declared.inputs.values(), *declared.outputs.values()) for axis in a.axes
    }
    assert declared.name == op and axes <= set(declared.axes)
    assert all(
        declared.bytes(sizes, 4) >= 0 and declared.flops(sizes) >= 0 for sizes in declared.cases
    )


def test_every_op_says_what_runs() -> None:
    report = active()
    assert set(report) == set(spec.names())
    assert all(entry["implementation"] and entry["why"] for entry in report.values())
