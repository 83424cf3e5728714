"""One self-contained HTML page about a run."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

from spark import __version__
from spark.core import Tree
from spark.view.records import Pieces, charts, tree_record
from spark.view.run import Run, load_run

TREES_PER_ARM = 12
HOT_NATS = 1.5
"""Entropy at which a token's background is fully coloured."""


def write_report(run_dir: Path | str) -> Path:
    """Write `report.html` into a run directory (or beside a file of trees) and return its path.

    Raises ValueError where `run_dir` is not a run.
    """
    path = Path(run_dir)
    target = path / "report.html" if path.is_dir() else path.with_suffix(".html")
    html = render(load_run(path))
    # a page that is open in a browser never sees half a file
    partial = target.with_suffix(".html.partial")
    partial.write_text(html, encoding="utf-8")
    return partial.replace(target)


def render(run: Run) -> str:
    """Return the page as text."""
    from jinja2 import Environment
    from markupsafe import Markup

    assets = files("spark.view")
    scripts = [assets.joinpath(f"{name}.js").read_text() for name in ("chart", "tree", "report")]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(assets.joinpath("report.html").read_text())
    return template.render(
        run=run,
        version=__version__,
        facts=facts(run.summary),
        notices=run.notices,
        selection=selection_note(run.trees),
        success=success_table(run.summary, run.recipe.get("eval", {}).get("games", {})),
        accounting=accounting_table(run.summary),
        data=page_data(run),
        css=Markup(assets.joinpath("report.css").read_text()),
        js=Markup("\n".join(scripts)),
    )


def page_data(run: Run) -> dict[str, Any]:
    """Return what the scripts draw."""
    pieces = Pieces(run.decode)
    chosen = select(run.trees)
    records = [tree_record(tree, pieces) for tree in chosen]
    telling = [telling_score(tree) for tree in chosen]
    return {
        "charts": charts(run.metrics),
        "trees": records,
        "first": telling.index(max(telling)) if telling else 0,
        "pieces": pieces.texts,
        "hot": HOT_NATS,
    }


def select(trees: list[Tree]) -> list[Tree]:
    """Return at most `TREES_PER_ARM` trees of every arm, evenly spaced, first and last included."""
    arms: dict[str, list[Tree]] = {}
    for tree in (tree for tree in trees if tree.nodes):
        arms.setdefault(str(tree.info.get("arm")), []).append(tree)
    chosen = []
    for group in arms.values():
        count = min(TREES_PER_ARM, len(group))
        places = [round(at * (len(group) - 1) / max(1, count - 1)) for at in range(count)]
        chosen += [group[place] for place in places]
    return chosen


def selection_note(trees: list[Tree]) -> str:
    """Return what to say where not all trees are drawn, else nothing."""
    shown = len(select(trees))
    if shown == len(trees):
        return ""
    return f"{shown} of {len(trees)} trees can be chosen here, evenly spaced over training."


def telling_score(tree: Tree) -> tuple[bool, int]:
    """Return how much there is to see: leaves that differ in reward, then forks."""
    rewards = {tree.total_reward(leaf) > 0 for leaf in tree.leaves()}
    return len(rewards) > 1, sum(node.trigger is not None for node in tree.nodes)


def facts(summary: dict[str, Any]) -> list[str]:
    """Return the facts of the page's second line."""
    known = []
    if "model_params" in summary:
        known.append(f"{summary['model_params'] / 1e6:.2f} M parameters")
    if "seed" in summary:
        known.append(f"seed {summary['seed']}")
    if "wall_s" in summary:
        known.append(f"{summary['wall_s'] / 60:.1f} minutes")
    return known


def success_table(summary: dict[str, Any], games: dict[str, int]) -> dict[str, Any] | None:
    """Return success before and after, with standard errors, and the gain; `games` per split."""
    arms = summary.get("arms", {})
    splits = sorted({split for arm in arms.values() for split in arm.get("success_after", {})})
    if not splits:
        return None
    rows = []
    for name, arm in arms.items():
        cells = []
        for split in splits:
            before, after = (arm[key][split] for key in ("success_before", "success_after"))
            gain = None if None in (before, after) else 100 * (after - before)
            cells += [percent(before, games.get(split)), percent(after, games.get(split))]
            cells.append("–" if gain is None else f"{gain:+.1f}".replace("-", "−"))
        rows.append({"arm": name, "cells": cells})
    counts = ", ".join(f"{games[split]} on {split}" for split in splits if split in games)
    note = f"Per cent of the games ({counts}) ± one standard error. " if counts else "Per cent. "
    note += "L0: seen rooms and task types, L1: unseen rooms, L2: unseen task types. "
    note += "ALFWorld engine, generated scenes: not comparable with json_2.1.1 scores."
    return {"splits": splits, "rows": rows, "note": note}


def percent(share: float | None, tasks: int | None) -> str:
    """Return a share of `tasks` as per cent with its binomial standard error."""
    if share is None:
        return "–"
    if not tasks:
        return f"{100 * share:.1f}"
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / tasks):.1f}"


def accounting_table(summary: dict[str, Any]) -> dict[str, Any] | None:
    """Return every counter of every arm."""
    arms = summary.get("arms", {})
    numbers = [
        name
        for name in dict.fromkeys(name for arm in arms.values() for name in arm)
        if all(isinstance(arm.get(name), int | float) for arm in arms.values())
    ]
    rows = [
        {"name": spelled(name), "cells": [amount(name, arm[name]) for arm in arms.values()]}
        for name in numbers
    ]
    return {"arms": list(arms), "rows": rows} if rows else None


def spelled(name: str) -> str:
    """Return a counter's name in words, e.g. "rollout wall-clock, s"."""
    return name.replace("_wall_s", " wall-clock, s").replace("_", " ")


def amount(name: str, value: float) -> str:
    """Return a counter with digits grouped."""
    return f"{value:,.1f}" if name.endswith("_s") else f"{value:,}"
