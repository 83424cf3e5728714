"""Who trains what: the trees of a minibatch shared out over the processes of a team."""

from __future__ import annotations

from collections.abc import Sequence

from spark.core import Tree
from spark.train.credit import Term
from spark.train.pack import Row, idle_row, pack
from spark.train.team import Team


def own_rows(
    graded: Sequence[tuple[Tree, list[list[Term]]]], team: Team, row_tokens: int
) -> tuple[list[Row], float, int]:
    """Return this process's rows of a minibatch, and the weight and trained tokens of all of it.

    Every process gets as many rows: with sharded weights all take part in every pass.

    Args:
        graded: the trees of the minibatch with their terms, the same on every process.
        team: the processes.
        row_tokens: tokens of a row at most.
    """
    own = [
        graded[index] for index in shared_out([tree for tree, _ in graded], team.size)[team.rank]
    ]
    rows = pack([tree for tree, _ in own], [terms for _, terms in own], row_tokens)
    weight = sum(float(row.weight.sum()) for row in rows)
    each = team.gather((len(rows), weight, sum(len(row.targets) for row in rows)))
    counts, weights, targets = zip(*each, strict=True)
    return rows + [idle_row()] * (max(counts) - len(rows)), sum(weights), sum(targets)


def shared_out(trees: Sequence[Tree], ranks: int) -> list[list[int]]:
    """Return for every rank the indices of its trees: large ones first, to who has least so far.

    The load of a tree is its unique tokens, which is what packing forwards.
    """
    sizes = [sum(len(node.tokens) for node in tree.nodes) for tree in trees]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(range(len(trees)), key=lambda index: (-sizes[index], index)):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += sizes[index]
    return [sorted(share) for share in shares]
