"""The embedded engine's server: whole trees branched inside it, or by a client that resubmits.

The embedded engine has no prefix cache across requests, so that the client's children compute
their prefix again: this is the naive baseline. The suites of vLLM and SGLang have the strong one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.engine import VOCAB
from benchmarks.harness import Case
from benchmarks.served import server, tree_model, trees


def run(quick: bool = False) -> list[Case]:
    """Return one case per shape of tree."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server(tree_model(Path(folder)), "--engine", "local", "--kv_blocks", "4096") as url,
    ):
        return trees(url, VOCAB, quick)
