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
    from own_process import Server, together
    from served import SERVE, THEIRS, served


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


@pytest.fixture(scope="session")
def servers(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    from http_behaviour import SMALL

    ours = {"page-size": 16, "chat_template": "append_only"}
    ours |= {f"branching_{name}": limit for name, limit in SMALL.items()}
    low = {"branching_max_leaves": 16, "branching_max_running_leaves": 48}
    low |= {"branching_max_body_bytes": 100_000, "branching_idle_seconds": 2}
    low |= {"max_total_tokens": 2048, "page_size": 16, "enable_metrics": True}
    folder = tmp_path_factory.mktemp("servers")
    with together(
        served(models["qwen3"], folder / "ours", SERVE, **ours),
        served(models["qwen3"], folder / "theirs", THEIRS, **low),
    ) as started:
        yield started


@pytest.fixture(scope="session")
def server(servers: list[Server]) -> Server:
    """Started by our command, 16 tokens a page, small limits."""
    return servers[0]


@pytest.fixture(scope="session")
def small(servers: list[Server]) -> Server:
    """Started by `sglang serve`, with little memory and low limits."""
    return servers[1]
