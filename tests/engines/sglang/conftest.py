"""One engine per configuration and session; each is clean after every test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "serve")]

try:
    version("sglang")
except PackageNotFoundError:
    # `make test-sglang` has an environment of its own
    collect_ignore_glob = ["test_*.py"]
else:
    from offline import Offline, save_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        family: save_model(family, tmp_path_factory.mktemp(family)) for family in ("qwen3", "llama")
    }


@pytest.fixture(scope="session")
def single(models: dict[str, Path]) -> Iterator[Offline]:
    """Qwen3, a token a page."""
    with Offline(models["qwen3"], "qwen3", page_size=1) as engine:
        yield engine


@pytest.fixture(scope="session")
def paged(models: dict[str, Path]) -> Iterator[Offline]:
    """Llama, 16 tokens a page."""
    with Offline(models["llama"], "llama", page_size=16) as engine:
        yield engine


@pytest.fixture(params=["single", "paged"])
def engine(request: pytest.FixtureRequest) -> Iterator[Offline]:
    """Both of them; nothing is left in the pool behind a test."""
    found: Offline = request.getfixturevalue(request.param)
    yield found
    found.check_clean()
