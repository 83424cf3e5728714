"""`n` samples of one seeded request: SGLang sends one set of parameters `n` times."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from spark.engines.sglang.hooks import Hook
from spark.seeds import derive_seed

REMEMBERED = 256
# id of a parameter object -> it (so that the id stays its own), and how often it was sent
_sent: OrderedDict[int, tuple[Any, int]] = OrderedDict()


def on_send(manager: Any, request: Any) -> None:
    """A request leaves for the scheduler: further samples of it get seeds of their own."""
    params = getattr(request, "sampling_params", None)
    seed = getattr(params, "sampling_seed", None)
    if seed is None:
        return
    _, sample = _sent.pop(id(params), (params, 0))
    _sent[id(params)] = (params, sample + 1)
    if len(_sent) > REMEMBERED:
        _sent.popitem(last=False)
    if sample:
        request.sampling_params = copy.copy(params)
        request.sampling_params.sampling_seed = derive_seed("sample", seed, sample)


HOOK = Hook(
    "sglang.srt.managers.tokenizer_manager.TokenizerManager._send_one_request", "before", on_send
)
