"""What hooks refuse, leave out or give back, on stand-ins for SGLang's objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tiny_models import VOCAB, tokenizer

from spark.engines.sglang import fork, versions
from spark.engines.sglang.choices import make_grammar, on_masks
from spark.engines.sglang.claims import Claims
from spark.engines.sglang.member import Member
from spark.engines.sglang.rows import Rows
from spark.engines.sglang.scores import Observer
from spark.engines.sglang.tail import Tail
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


def test_pages_of_children_aborted_in_the_queue_are_freed() -> None:
    freed: list[Tail] = []
    queues = {
        "waiting_queue": [SimpleNamespace(rid="queued")],
        "grammar_manager": SimpleNamespace(grammar_queue=[SimpleNamespace(rid="compiles")]),
    }
    found = scheduler(**queues)
    claims = Claims(found.tree_cache, SimpleNamespace(size=16, free=freed.append))
    tails = {rid: Tail(0, 3, torch.arange(16)) for rid in ("queued", "compiles", "aborted")}
    claims._claim("tree").waiting.update(tails)
    found.tree_cache.spark_claims = claims
    plan = SimpleNamespace(batch_to_run="a batch")
    assert fork.on_prefill(lambda *_: plan, found, None) is plan
    assert freed == [tails["aborted"]] and claims.held_tokens == 2 * 16


def test_choices_share_the_mask_of_outlines() -> None:
    """It has a bool for what is forbidden, where others have a bit for what is allowed."""
    wire = {"opening": "<action>", "choices": [[50, 51], [63]], "before": []}
    choices = make_grammar(wire, tokenizer(), VOCAB)
    for token in tokenizer().encode("<action>"):
        choices.accept_token(token)
    mask = torch.zeros(3, VOCAB, dtype=torch.bool)

    def outlines(info: Any) -> None:
        mask[0] = torch.arange(VOCAB) != 31
        info.grammar_mask = SimpleNamespace(vocab_mask=mask)

    rows = Rows(torch.zeros(3), [True] * 3)
    info = SimpleNamespace(grammars=[Mock(is_spark=False), choices, None], spark=rows)
    on_masks(outlines, info)
    Observer(samples=True).before_grammar(torch.zeros(3, VOCAB), info)
    assert info.grammar_mask is None
    assert rows.allowed is not None and rows.allowed.dtype == torch.int32
    allowed = (rows.allowed[:, :, None] >> torch.arange(32) & 1).flatten(1)[:, :VOCAB]
    wanted = ([31], [50, 63], list(range(VOCAB)))
    assert [row.nonzero().flatten().tolist() for row in allowed] == list(wanted)


def test_a_full_queue_is_told_to_come_back() -> None:
    with pytest.raises(RequestError, match="queue is full") as told:
        backend._raise({"status_code": 503, "message": "The request queue is full."})
    assert (told.value.status, told.value.retry_s) == (503, 1)
