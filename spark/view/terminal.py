"""A run in the terminal: what it is, and one tree as an indented outline."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.text import Text
from rich.tree import Tree as Outline

from spark.core import Tree
from spark.view.records import advantages, mean_entropy, tree_facts, tree_name
from spark.view.run import Decode, Run


def show_run(run: Run, tree_index: int, console: Console) -> None:
    """Print the facts of `run` and its tree number `tree_index` (negative counts from the end).

    Raises ValueError when there is no such tree.
    """
    for notice in run.notices:
        console.print(notice, style="yellow")
    if not run.trees:
        console.print("No tree is recorded yet.")
        return
    if not -len(run.trees) <= tree_index < len(run.trees):
        raise ValueError(f"tree={tree_index}: the run has {len(run.trees)} trees, from 0")
    console.print(draw(run.trees[tree_index], run.decode))


def draw(tree: Tree, decode: Decode) -> RenderableType:
    """Return `tree` as an outline: turns up to a fork are lines of one entry, its children nest."""
    children, credit = tree.children(), advantages(tree)
    outline = Outline(Text(tree_name(tree), style="bold"), guide_style="dim")
    # a tree lost to a failed reset has no nodes
    pending = [(0, outline)] if tree.nodes else []
    while pending:
        index, above = pending.pop()
        run = [index]
        while len(children[run[-1]]) == 1:
            run += children[run[-1]]
        lines = [describe(tree, node, credit[node], decode) for node in run]
        entry = above.add(Text("\n", no_wrap=True, overflow="ellipsis").join(lines))
        # popped last in, first out: the first child comes next
        pending += [(child, entry) for child in reversed(children[run[-1]])]
    return Group(outline, Text(" · ".join(tree_facts(tree)), style="dim"))


def describe(tree: Tree, index: int, advantage: float, decode: Decode) -> Text:
    """Return one line about node `index`: numbers, then the text the policy wrote."""
    node = tree.nodes[index]
    entropy = mean_entropy(node)
    line = Text(f"{index} ", style="dim")
    if entropy is None:
        return line.append(f"prompt, {len(node.tokens)} tokens", style="dim")
    line.append(f"H {entropy:.2f} ", style="yellow")
    line.append(f"A {advantage:+.2f} ", style="cyan" if advantage >= 0 else "magenta")
    if node.trigger:
        line.append(f"branches on {node.trigger} ", style="bold")
    if node.invalid:
        line.append("invalid ", style="red")
    if node.done:
        reward = tree.total_reward(index)
        line.append(f"reward {reward:g} ", style="bold green" if reward > 0 else "dim")
    drawn = [token for token, own in zip(node.tokens, node.sampled, strict=True) if own]
    return line.append(" ".join(decode(drawn).split()), style="default")
