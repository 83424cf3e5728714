"""head_loss: gradients, limited rows, shards of the vocabulary, the Triton kernels interpreted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_kernels import head_loss, spec
from spark_kernels.head_loss import op
from spark_kernels.head_loss import rows as row_maths
from spark_kernels.head_loss.policy import PolicyLoss, differentiate, overwrite_
from spark_kernels.head_loss.reference import head_loss_reference
from spark_kernels.head_loss.rows import Limits, Scaling
from spark_kernels.head_loss.spec import definition, init
from spark_kernels.head_loss.spec import objective as spec_objective

pytestmark = [pytest.mark.device, pytest.mark.usefixtures("poison")]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(seed: int = 0, **sizes: int) -> dict:
    wanted = {"T": 7, "N": 11, "H": 8, "V": 37, **sizes}
    return init(wanted, torch.float32, torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.integers(1, 12), st.booleans(), st.sampled_from([0.0, 3.0]))
@settings(max_examples=30, deadline=None)
def test_gradients_in_double_precision(
    seed: int, chunk: int, limited: bool, softcap: float
) -> None:
    given_inputs = inputs(seed, V=9, T=4, N=6)
    options = {"softcap": softcap, "temperature": given_inputs["temperature"].double()}
    if limited:
        options["allowed"] = given_inputs["allowed"]
    rows, tokens, loss = (given_inputs[name] for name in ("rows", "tokens", "loss"))
    leaves = [given_inputs[n].detach().double().requires_grad_() for n in ("hidden", "weight")]
    got = head_loss(*leaves, rows, tokens, loss, chunk=chunk, **options)
    want = head_loss_reference(*leaves, rows, tokens, loss, **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    ours, theirs = (torch.autograd.grad(3 * r[0], leaves) for r in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_loss_may_ignore_entropy_or_everything() -> None:
    given_inputs = inputs()
    given_inputs["loss"] = lambda logprob, entropy, part: -logprob.sum()
    got, want = spec.load("head_loss").call(**given_inputs), definition(**given_inputs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    given_inputs["loss"] = lambda logprob, entropy, part: torch.tensor(2.0)
    result = head_loss(**given_inputs)
    result.loss.backward()
    assert result.loss == 2 and not given_inputs["hidden"].grad.any()


def test_scores_without_a_loss() -> None:
    given_inputs = inputs()
    whole = head_loss(**given_inputs)
    with torch.no_grad():
        alone = head_loss(**{**given_inputs, "loss": None})
    assert alone.loss == 0
    assert torch.equal(alone.logprob, whole.logprob) and torch.equal(alone.entropy, whole.entropy)


def test_a_frozen_head_gets_no_gradient() -> None:
    given_inputs = inputs()
    given_inputs["weight"].requires_grad_(False)
    head_loss(**given_inputs).loss.backward()
    assert given_inputs["weight"].grad is None and given_inputs["hidden"].grad.any()


def test_states_that_no_row_names_get_no_gradient() -> None:
    given_inputs = inputs(T=50)
    head_loss(**given_inputs).loss.backward()
    named = torch.zeros(50, dtype=torch.bool).index_fill(0, given_inputs["rows"], True)
    gradient = given_inputs["hidden"].grad
    assert not gradient[~named].any() and gradient[named].any(1).all()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_extreme_logits(shift: float) -> None:
    """Entropy and log-probability do not notice a constant on all logits of a row."""
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    weight = torch.stack([torch.full((50,), shift), torch.linspace(-3, 5, 50) ** 3], 1)
    rows, tokens = torch.arange(3), torch.tensor([4, 49, 7])
    got = head_loss(hidden, weight, rows, tokens)
    want = head_loss_reference(hidden.double(), weight.double(), rows, tokens)
    # a float32 logit of 1e4 is known to 1e-3
    for ours, theirs in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-3 if shift else 1e-5)
    assert (got.logprob <= 0).all() and (got.entropy >= 0).all()
    assert abs(got.entropy[0].item() - torch.tensor(50.0).log().item()) < 1e-4


def _sharded(rank: int, address: str, result: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    given_inputs = inputs(V=38)
    whole = given_inputs["weight"]
    own = whole.detach()[rank * 19 : rank * 19 + 19].clone().requires_grad_()
    got = head_loss(**{**given_inputs, "weight": own}, group=torch.distributed.group.WORLD, chunk=4)
    got.loss.backward()
    values = [*(x.detach() for x in got), given_inputs["hidden"].grad, own.grad]
    torch.save(values, f"{result}{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_vocabulary(tmp_path) -> None:
    address, result = f"file://{tmp_path}/meet", str(tmp_path / "rank")
    multiprocessing.spawn(_sharded, (address, result), nprocs=2)
    want = definition(**inputs(V=38))
    for rank in range(2):
        *scores, by_hidden, by_weight = torch.load(f"{result}{rank}")
        torch.testing.assert_close((*scores, by_hidden), want[:4], rtol=1e-5, atol=1e-5)
        own = want[4][rank * 19 : rank * 19 + 19]
        torch.testing.assert_close(by_weight, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("vocab", [1, 31, 4096, 4097, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_triton_kernels_against_torch(dtype, vocab: int, softcap: float) -> None:
    pytest.importorskip("triton")
    from spark_kernels.head_loss.launch import launch_gradient, launch_statistics

    # rows wider than the vocabulary: what lies behind it must not be read
    padded = torch.full((5, vocab + 7), torch.nan, dtype=dtype, device=DEVICE)
    logits = padded[:, :vocab]
    logits.copy_(3 * torch.randn(5, vocab))
    logits[1, : vocab // 2] = -torch.inf
    tokens = torch.tensor([0, vocab - 1, vocab // 2, -3, vocab], device=DEVICE)
    scaling = Scaling(torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], device=DEVICE), softcap)
    want = row_maths.statistics(logits.cpu(), tokens.cpu(), Scaling(scaling.inverse.cpu(), softcap))
    got = launch_statistics(logits, tokens, scaling.inverse, softcap)
    for ours, theirs in zip(got, (want.peak, want.total, want.moment, want.chosen), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5)
    derivatives = [torch.randn(5), torch.randn(5)]
    expected = logits.cpu().clone()
    cpu = Scaling(scaling.inverse.cpu(), softcap)
    row_maths.gradient_(expected, tokens.cpu(), cpu, want, *derivatives)
    columns = [x.to(DEVICE) for x in (want.normaliser, want.entropy, *derivatives)]
    launch_gradient(logits, tokens, scaling.inverse, softcap, *columns)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(logits.cpu(), expected, rtol=tolerance, atol=tolerance)
    assert padded[:, vocab:].isnan().all()


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("vocab", [3, 4096, 9001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_launch_equals_the_steps(dtype, vocab: int, softcap: float, limited: bool) -> None:
    """Loss, scores and gradient of the policy kernel against torch's steps."""
    pytest.importorskip("triton")
    count = 6
    padded = torch.full((count, vocab + 7), torch.nan, dtype=dtype, device=DEVICE)
    logits = padded[:, :vocab]
    logits.copy_(3 * torch.randn(count, vocab))
    logits[1, : vocab // 2] = -torch.inf
    tokens = torch.tensor([0, vocab - 1, vocab // 2, 2, 1, 0], device=DEVICE)
    scaling = Scaling(torch.rand(count, device=DEVICE) + 0.5, softcap)
    limits = None
    if limited:
        row, token = torch.tensor([0, 0, 4]), torch.tensor([0, 2, 1])
        chosen = torch.tensor([True, False, False, False, True, False])
        limits = Limits(row.to(DEVICE), token.to(DEVICE), chosen.to(DEVICE))
    found = row_maths.statistics(logits, tokens, scaling)
    whole = found if limits is None else limits.statistics(logits, tokens, scaling, found)
    # ratios on either side of the bounds, and terms of either sign
    shift = torch.tensor([0.0, 0.5, -0.5, 0.5, -0.5, 0.1], device=DEVICE)
    weights = torch.rand(4, count + 2, device=DEVICE)
    loss = PolicyLoss(
        old=torch.cat([torch.zeros(2, device=DEVICE), whole.logprob - shift]),
        gain=weights[0],
        cost=-weights[1],
        reference=torch.cat([torch.ones(2, device=DEVICE), whole.logprob - 0.3]),
        kl=weights[2],
        bonus=weights[3],
        clip_low=0.2,
        clip_high=0.25,
    )
    part = slice(2, 2 + count)
    want_value, derivatives = differentiate(lambda *scores: loss(*scores, part), whole)
    expected = logits.clone()
    change = row_maths.gradient_ if limits is None else limits.gradient_
    change(expected, tokens, scaling, whole, *derivatives)
    value, logprob, entropy = overwrite_(logits, tokens, scaling, limits, loss, part)
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(value, want_value, **near)
    torch.testing.assert_close(logprob, whole.logprob, **near)
    torch.testing.assert_close(entropy, whole.entropy, **near)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    assert padded[:, vocab:].isnan().all()


def test_a_policy_loss_never_takes_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel runs, limited rows included, the whole op is one launch a chunk."""
    pytest.importorskip("triton")
    monkeypatch.setattr(op, "fused", lambda device: True)
    monkeypatch.setattr(op, "_in_steps", None)
    agrees(inputs())


def agrees(given_inputs: dict) -> None:
    """Compare loss, scores and gradients on the device with the definition's."""
    moved = {name: there(value) for name, value in given_inputs.items()}
    got, want = spec.load("head_loss").call(**moved), definition(**given_inputs)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-5, atol=2e-5)


def there(value):
    """Return an input on the device."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(DEVICE).requires_grad_(value.requires_grad)
    if isinstance(value, PolicyLoss):
        return dataclasses.replace(
            value, **{f.name: there(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return tuple(map(there, value)) if isinstance(value, tuple) else value


@pytest.mark.parametrize("entropy", [0.0, 0.1])
def test_a_loss_whose_derivative_is_one_number(
    entropy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch expands it to all rows without memory of their own, which a kernel would read past."""
    pytest.importorskip("triton")
    for module in (op, row_maths):
        monkeypatch.setattr(module, "fused", lambda device: True)
    given_inputs = inputs() | {"allowed": None}
    given_inputs["loss"] = lambda logprob, own, part: -(logprob + entropy * own).sum()
    agrees(given_inputs)


def test_a_second_backward_is_refused() -> None:
    result = head_loss(**inputs())
    result.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it again"):
        result.loss.backward()


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_forbidden_token_may_be_far_above_the_allowed_ones(
    known: bool, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probability, next to theirs, is more than a float holds; nothing of it is in the loss."""
    if kernels:
        pytest.importorskip("triton")
        for module in (op, row_maths):
            monkeypatch.setattr(module, "fused", lambda device: True)
    weight = torch.tensor([[300.0], [-10.0], [-10.5], [0.0], [1.0]], device=DEVICE)
    limits = (torch.zeros(2, dtype=torch.int64), torch.tensor([1, 2]))
    whole = {
        "rows": torch.tensor([0, 1], device=DEVICE),
        "tokens": torch.tensor([1, 0], device=DEVICE),
        "temperature": 0.3,
        "allowed": tuple(each.to(DEVICE) for each in limits),
    }
    loss = spec_objective(torch.tensor([1.0, -1.0], device=DEVICE), torch.zeros(2, device=DEVICE))
    leaves = [torch.ones(2, 1, device=DEVICE).requires_grad_(), weight.requires_grad_()]
    wide = [each.detach().double().requires_grad_() for each in leaves]
    got = head_loss(*leaves, loss=loss if known else loss.__call__, **whole)
    want = head_loss_reference(*wide, loss=loss, **whole)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=1e-4)
    ours, theirs = (torch.autograd.grad(r[0], x) for r, x in ((got, leaves), (want, wide)))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-4)


BAD = {
    r"hidden must be \[T, H\]": {"hidden": torch.zeros(3)},
    r"weight must be \[V, 8\]": {"weight": torch.zeros(5, 3)},
    "rows must be int64": {"rows": torch.zeros(11)},
    r"tokens must be int64 \[11\]": {"tokens": torch.zeros(3, dtype=torch.int64)},
    "temperature must be > 0, got -1": {"temperature": -1.0},
    r"temperature must be one number or \[11\]": {"temperature": torch.ones(2)},
    "softcap must be >= 0": {"softcap": -2.0},
    "chunk must be >= 1": {"chunk": 0},
    "allowed must be two": {"allowed": (torch.zeros(2), torch.zeros(2))},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        head_loss(**{**inputs(), **BAD[message]})
