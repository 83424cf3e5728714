"""The report in a real browser: every node is drawn and nothing is complained about."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_run import write_run

from spark.rollout.store import load_trees
from spark.view.report import write_report

pytestmark = pytest.mark.slow

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
]


def browse(page: Path, profile: Path, fragment: str = "") -> tuple[str, list[str]]:
    """Return the document after its scripts ran, and what they wrote to the console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    assert browser, "no Chromium: apt-get install -y chromium"
    url = f"{page.resolve().as_uri()}{fragment}"
    command = [browser, *QUIET, f"--user-data-dir={profile}", "--dump-dom", url]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if ":CONSOLE" in line]


def test_every_node_of_every_tree_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trees_per_arm=2)
    page = write_report(run)
    for index, tree in enumerate(load_trees(run / "trees.jsonl")):
        fragment = f"#tree={index}&node=2&colour={('entropy', 'advantage')[index % 2]}"
        document, complaints = browse(page, tmp_path / f"profile{index}", fragment)
        drawn = [int(number) for number in re.findall(r'data-node="(\d+)"', document)]
        assert drawn == list(range(len(tree.nodes)))
        assert "<h3>node 2 " in document and 'class="token"' in document
        assert document.count("<polyline") == 6, "three charts of two arms"
        assert not complaints


def test_an_error_in_the_page_would_be_noticed(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run", trees_per_arm=1))
    page.write_text(page.read_text().replace("main();", "main(); undefined.x;"))
    _, complaints = browse(page, tmp_path / "profile")
    assert complaints
