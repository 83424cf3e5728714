"""Real vLLM on the CPU, in fp32, with small random models written by transformers."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "serve")]

if importlib.util.find_spec("vllm.sampling_params") is None:
    collect_ignore_glob = ["test_*.py"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# the server has the routes that trainers send weights by
os.environ.setdefault("VLLM_SERVER_DEV_MODE", "1")
# the engine core in this process: starts in seconds, and a test can look into it
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return family -> folder of a saved random model with its tokenizer."""
    from models import save

    root = tmp_path_factory.mktemp("models")
    return functools.cache(lambda family: save(family, root / family))


@pytest.fixture(scope="session")
def engines(models: Any) -> Iterator[Any]:
    """Return a maker of in-process engines; equal settings give the same engine.

    None may be closed before the end: that ends what all of them share.
    """
    from harness import Harness

    made: dict[tuple, Harness] = {}

    def make(family: str = "qwen3", **settings: Any) -> Harness:
        key = (family, *sorted((name, str(value)) for name, value in settings.items()))
        if key not in made:
            made[key] = Harness(models(family), **settings)
        return made[key]

    make.made = made
    yield make
    with pytest.MonkeyPatch.context() as patch:
        # of which vLLM does several rounds, seconds in this process
        patch.setattr(gc, "collect", lambda: 0)
        for harness in made.values():
            harness.close()


@pytest.fixture(scope="session")
def server(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return vLLM's server of the Qwen3 model, with small limits; tests share it."""
    from http_behaviour import SMALL
    from server import limits, serving

    flags = (limits(**SMALL), "--weight_updates")
    with serving(models("qwen3"), tmp_path_factory.mktemp("server"), *flags) as started:
        yield started
