"""`python -m benchmarks.study_report`: the tables and plots of docs/study.md from the results."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.results import ROOT, table
from benchmarks.statistics import bootstrap, paired_p
from benchmarks.study import RESULTS

PAGE = ROOT / "docs" / "study.md"
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#7f7f7f"]
WIDTH, HEIGHT, MARGIN = 640, 320, 48
SHARED = [(0, 0), (1, 4), (5, 8), (9, 99)]
"""Decisions two leaves share: the columns of the table of pairs."""
Runs = dict[str, list[dict[str, Any]]]
"""Arm -> its runs, by seed."""


def by_arm(data: dict[str, Any]) -> Runs:
    """Return the runs of every arm, in the order of the file."""
    arms: Runs = defaultdict(list)
    for run in data["runs"]:
        arms[run["arm"]].append(run)
    return {arm: sorted(runs, key=lambda run: run["seed"]) for arm, runs in arms.items()}


def baseline(arms: Runs) -> str:
    """Return the arm that the others are held against: the first of chains, "" without any."""
    return next((arm for arm in arms if arm.split("+")[0] == "chain"), "")


def success_table(arms: Runs) -> str:
    """Return success per arm and split, with 90 % intervals and the paired test against chains."""
    splits = list(next(iter(arms.values()))[0]["success"])
    rows = []
    for arm, runs in arms.items():
        cells = [arm, str(len(runs))]
        for split in splits:
            values = [run["success"][split] for run in runs]
            cells.append(f"{fmean(values):.1%}{interval(values)}{against(arms, arm, split)}")
        rows.append(cells)
    start = [fmean(run["start"][s] for runs in arms.values() for run in runs) for s in splits]
    rows.append(["start", "", *(f"{value:.1%}" for value in start)])
    return table(["arm", "seeds", *splits], rows)


def interval(values: list[float]) -> str:
    """Return the bootstrap interval of the mean; one seed has none."""
    if len(values) < 2:
        return ""
    low, high = bootstrap(values)
    return f" [{low:.1%}, {high:.1%}]"


def against(arms: Runs, arm: str, split: str) -> str:
    """Return the paired p-value of `arm` against the baseline over the seeds both have."""
    chains = baseline(arms)
    base = {run["seed"]: run["success"][split] for run in arms.get(chains, [])}
    pairs = [(r["success"][split], base[r["seed"]]) for r in arms[arm] if r["seed"] in base]
    if arm == chains or len(pairs) < 2:
        return ""
    return f", p={paired_p(*zip(*pairs, strict=True)):.2f}"


def cost_table(arms: Runs) -> str:
    """Return what an arm cost, on average over its seeds."""
    tokens, seconds = ("generated", "prefilled", "reused", "trained"), ("rollout", "train", "env")
    counts = ("episodes", "forks", "env_steps", "env_steps_replayed")
    rows = []
    for arm, runs in arms.items():
        cells = [f"{fmean(run['tokens'][name] for run in runs):,.0f}" for name in tokens]
        cells += [f"{fmean(run[name] for run in runs):,.0f}" for name in counts]
        cells += [f"{fmean(run['seconds'][name] for run in runs):,.0f}" for name in seconds]
        rows.append([arm, *cells])
    units = [f"{name} tokens" for name in tokens], [f"{name} s" for name in seconds]
    names = [name.replace("_", " ") for name in counts]
    return table(["arm", *units[0], *names, *units[1]], rows)


def pass_table(arms: Runs) -> str:
    """Return pass@k per arm."""
    ks = list(next(iter(arms.values()))[0]["pass_at_k"])
    rows = [
        [arm, *(f"{fmean(run['pass_at_k'][k] for run in runs):.1%}" for k in ks)]
        for arm, runs in arms.items()
    ]
    return table(["arm", *(f"pass@{k}" for k in ks)], rows)


def tree_table(arms: Runs) -> str:
    """Return how much of what an arm generated could teach it anything: trees of both outcomes."""
    rows = []
    for arm, runs in arms.items():
        names = ("trees", "mixed", "leaves", "won")
        trees, mixed, leaves, won = (sum(run["trees"][name] for run in runs) for name in names)
        tokens = sum(run["tokens"]["generated"] for run in runs)
        shares = [f"{leaves / trees:.1f}", f"{won / leaves:.0%}", f"{mixed / trees:.0%}"]
        rows.append([arm, *shares, f"{mixed / tokens * 1e5:.0f}", f"{leaves / tokens * 1e5:.0f}"])
    head = ["arm", "leaves per tree", "won leaves", "trees of both outcomes"]
    return table([*head, "of them per 100,000 tokens", "leaves per 100,000 tokens"], rows)


def pair_table(arms: Runs) -> str:
    """Return how often two leaves of a tree differ in outcome, by the decisions they share."""
    rows = []
    for arm, runs in arms.items():
        cells = []
        for first, last in SHARED:
            counts = [
                count
                for run in runs
                for turn, count in run["pairs"].items()
                if first <= int(turn) <= last
            ]
            total, differ = (sum(count[k] for count in counts) for k in (0, 1))
            cells.append(f"{differ / total:.0%} of {total:,}" if total else "")
        rows.append([arm, *cells])
    return table(
        ["arm", "none", *(f"{a} to {b}" if b < 99 else f"{a} or more" for a, b in SHARED[1:])], rows
    )


def trigger_table(arms: Runs) -> str:
    """Return which share of an arm's forks lies in which quarter of the horizon and of training."""
    rows = []
    for arm, runs in arms.items():
        cells = []
        for axis in ("by_turn", "by_step"):
            quarters = [0, 0, 0, 0]
            for run in runs:
                found = {int(at): count for at, count in run["triggers"][axis].items()}
                steps = max(found, default=0) + 1
                last = run["horizon"] if axis == "by_turn" else steps
                for at, count in found.items():
                    # a fork of the first decision is one of the prompt, whose turn is -1
                    quarters[max(at, 0) * 4 // last] += count
            total = sum(quarters)
            cells.append(" ".join(f"{count / total:.0%}" for count in quarters) if total else "")
        if any(cells):
            rows.append([arm, *cells])
    return table(["arm", "forks by quarter of the horizon", "by quarter of the training"], rows)


def curves(arms: Runs, axis: str) -> str:
    """Return success against `axis` ("tokens" or "seconds") as SVG: one line per arm."""
    lines = {arm: mean_curve(runs, axis) for arm, runs in arms.items()}
    points = [point for line in lines.values() for point in line]
    right = max(x for x, _ in points)
    top = max(y for _, y in points) or 1.0
    shapes = []
    for number, (arm, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(
            f"{MARGIN + x / right * (WIDTH - 2 * MARGIN):.1f},"
            f"{HEIGHT - MARGIN - y / top * (HEIGHT - 2 * MARGIN):.1f}"
            for x, y in line
        )
        shapes.append(f'<polyline points="{places}" fill="none" stroke="{colour}"/>')
        y = MARGIN + 14 * number
        shapes.append(f'<text x="{WIDTH - MARGIN}" y="{y}" fill="{colour}">{arm}</text>')
    shapes.append(f'<text x="{MARGIN}" y="{HEIGHT - 16}">0 to {right:,.0f} {axis}</text>')
    shapes.append(f'<text x="{MARGIN}" y="20">success, 0 to {top:.0%}</text>')
    frame = f'viewBox="0 0 {WIDTH + 2 * MARGIN} {HEIGHT}" font-size="11" font-family="sans-serif"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {frame}>{"".join(shapes)}</svg>\n'


def mean_curve(runs: list[dict[str, Any]], axis: str) -> list[tuple[float, float]]:
    """Return (cost, success) averaged over seeds: the points all of them have, and the end."""
    shared = min(len(run["curve"]) for run in runs)
    places = [*range(shared - 1), -1]
    return [
        (
            fmean(run["curve"][at][axis] for run in runs),
            fmean(run["curve"][at]["success"] for run in runs),
        )
        for at in places
    ]


def section(name: str, data: dict[str, Any], folder: Path) -> str:
    """Return the part of the page on one results file; writes its plots into `folder`."""
    arms = by_arm(data)
    budgets = sorted({f"{run['budget']:,.0f} {run['stop']}" for run in data["runs"]})
    parts = [f"## {name}", f"`{data['command']}` at {data['git']}; stop: {', '.join(budgets)}."]
    parts += ["Success (mean over seeds, 90 % bootstrap interval, paired p against chains):"]
    parts += [success_table(arms), "What it cost, means over seeds:", cost_table(arms)]
    for axis in ("tokens", "seconds"):
        plot = folder / f"study_{name}_{axis}.svg"
        plot.write_text(curves(arms, axis))
        parts.append(f"![Success against {axis}]({plot.name})")
    parts += ["Success of the final policy in k tries:", pass_table(arms)]
    parts += ["What the trees could teach (won or lost alike, a tree teaches nothing):"]
    parts += [tree_table(arms)]
    parts += ["Pairs of leaves of which one won and one lost, by the decisions the two share:"]
    parts += [pair_table(arms)]
    parts += ["Where trees branched:", trigger_table(arms)]
    return "\n\n".join(parts)


def signal_section(data: dict[str, Any]) -> str:
    """Return the part of the page on the gradients of single trees."""
    rows = []
    for row in data["signal"]:
        ratio = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        figures = [f"{row['tokens']:,.0f}", f"{row['signal']:.3f}", f"{row['noise']:.3f}"]
        rows.append([row["arm"], str(row["trees"]), *figures, ratio])
    head = ["arm", "trees", "tokens per tree", "signal", "noise", "progress per token, chain = 1"]
    return f"`{data['command']}` at {data['git']}.\n\n{table(head, rows)}"


def write(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Replace what stands after the marker of `page` with the tables of all results files."""
    head, mark, _ = page.read_text().partition("<!-- study -->")
    parts = []
    for path in sorted(results.glob("*.json")):
        data = json.loads(path.read_text())
        if "signal" in data:
            parts.append(f"## {path.stem}\n\n{signal_section(data)}")
        else:
            parts.append(section(path.stem, data, page.parent))
    page.write_text(head + mark + "\n" + "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    write()
