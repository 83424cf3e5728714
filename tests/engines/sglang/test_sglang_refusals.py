"""What hooks refuse, leave out or give back, on stand-ins for SGLang's objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from spark.engines.sglang import fork, versions
from spark.engines.sglang.claims import Claims
from spark.engines.sglang.member import Member
from spark.serve.protocol import RequestError
from spark.serve.sglang import backend

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


@pytest.mark.parametrize(
    ("release", "windows", "count"), [("old", True, 0), ("old", False, 1), ("new", True, 1)]
)
def test_running_parents_with_windows_are_not_published_by_old_releases(
    monkeypatch: pytest.MonkeyPatch, release: str, windows: bool, count: int
) -> None:
    """There SGLang hides what was published from the parent, and frees its slots."""
    published: list[int] = []
    monkeypatch.setattr(versions, "publish", lambda cache, req, up_to: published.append(up_to))
    row = SimpleNamespace(req_to_token=[range(8)])
    cache = SimpleNamespace(supports_swa=lambda: windows, req_to_token_pool=row)
    if release == "new":
        cache.checkpoint = None
    kv = SimpleNamespace(req_pool_idx=0, kv_committed_len=8, cache_protected_len=0)
    parent = SimpleNamespace(origin_input_ids=[1, 2], output_ids=[3, 4, 5, 6], kv=kv)
    claims = Claims(cache, SimpleNamespace(size=1, copies=False))
    member = Member(tree="tree", parent="parent", at=4)
    claims.share(member, "child", [1, 2, 3, 4, 7], parent)
    assert published == [4] * count
    with pytest.raises(ValueError, match="tokens differ"):
        claims.share(member, "child", [1, 2, 3, 5], parent)


def test_a_full_queue_is_told_to_come_back() -> None:
    with pytest.raises(RequestError, match="queue is full") as told:
        backend._raise({"status_code": 503, "message": "The request queue is full."})
    assert (told.value.status, told.value.retry_s) == (503, 1)
