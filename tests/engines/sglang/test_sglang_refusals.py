"""What hooks refuse, leave out or give back, on stand-ins for SGLang's objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from spark.engines.sglang import fork

pytestmark = pytest.mark.sglang


def scheduler(**fields: Any) -> Any:
    """Return what the hooks read of a scheduler."""
    cache = SimpleNamespace(supports_mamba=lambda: False, supports_swa=lambda: False)
    args = SimpleNamespace(model_path="a/model")
    return SimpleNamespace(**{"tree_cache": cache, "server_args": args, **fields})


def test_a_recurrent_state_is_not_forked() -> None:
    hybrid = scheduler(tree_cache=SimpleNamespace(supports_mamba=lambda: True))
    with pytest.raises(ValueError, match=r"spark.tree .*'a/model'.* recurrent state"):
        fork.claims_of(hybrid)


def test_the_release_of_a_refused_tree_does_nothing() -> None:
    hybrid = scheduler(tree_cache=SimpleNamespace(supports_mamba=lambda: True))
    release = SimpleNamespace(rid=fork.RELEASE + "tree")
    assert fork.on_abort(pytest.fail, hybrid, release) is None
