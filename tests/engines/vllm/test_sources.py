"""Whose blocks a child may share, with a scheduler that is made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, MambaManager
from vllm.v1.request import RequestStatus

from spark.engines.vllm.branch import Branch, check
from spark.engines.vllm.forks import Forks

pytestmark = pytest.mark.vllm


def parent(status: RequestStatus) -> SimpleNamespace:
    """Return a request of the name `p` that has three tokens."""
    return SimpleNamespace(
        request_id="r",
        status=status,
        sampling_params=SimpleNamespace(extra_args=Branch(name="p").as_extra_args()),
        _all_token_ids=[1, 2, 3],
        num_computed_tokens=3,
        lora_request=None,
        cache_salt=None,
    )


def forks(request: Any, kind: type = FullAttentionManager) -> Forks:
    """Return the forks of a scheduler that has `request`, with one block of this `kind`."""
    single = Mock(kind, req_to_blocks={"r": [Mock()]})
    manager = Mock()
    manager.coordinator.single_type_managers = [single]
    made = Forks(SimpleNamespace(kv_cache_manager=manager, requests={"r": request}), 60.0)
    made.add(request)
    return made


@pytest.mark.parametrize("status", [RequestStatus.WAITING_FOR_REMOTE_KVS, RequestStatus.RUNNING])
def test_blocks_that_are_still_loaded_are_nobodys(status: RequestStatus) -> None:
    source = forks(parent(status))._find_source("p")
    assert (source is not None) == (status == RequestStatus.RUNNING)


def test_recurrent_states_are_not_shared() -> None:
    assert forks(parent(RequestStatus.RUNNING), MambaManager)._find_source("p") is None


@pytest.mark.parametrize("wrong", [{"mm_features": [Mock()]}, {"prompt_embeds": Mock()}])
def test_prompts_that_token_ids_do_not_tell_are_refused(wrong: dict) -> None:
    """Two images have the same placeholders: a child would see its parent's."""
    usual = {"prompt_token_ids": [1, 2], "mm_features": None, "prompt_embeds": None}
    request = SimpleNamespace(sampling_params=SimpleNamespace(n=1), **usual | wrong)
    check(Branch(), request)
    for branch in (Branch(name="p"), Branch(parent="p", fork_at=2), Branch(prompt_length=1)):
        with pytest.raises(ValueError, match="forks go by token ids, which say nothing"):
            check(branch, request)
