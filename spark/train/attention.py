"""Tree attention for training, behind transformers' attention interface.

Every segment of a packed row attends to the keys of its own path only, so the cost is that of the
tree and no mask of [T, T] is made. Plain matrix products: they are faster on CPU, forward and
backward, than the fused kernel at the lengths of agent episodes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from spark.train.pack import Row

NAME = "spark_tree"


def use_tree_attention(model: PreTrainedModel) -> None:
    """Make `model` expect `tree=Row` in its forward call."""
    model.set_attn_implementation(NAME)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Row,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attend along the paths of `tree`.

    Args:
        module: the attention layer (transformers' interface asks for it).
        query: [1, Hq, T, D].
        key: [1, Hkv, T, D].
        value: [1, Hkv, T, D].
        attention_mask: not used; the row knows who sees whom.
        tree: the packed row.
        scaling: factor of the scores; 1 / sqrt(D) by default.
        sliding_window: a token sees this many positions, itself included; None = all.
        softcap: scores become softcap * tanh(score / softcap).
        unused: what else the interface passes.

    Returns:
        The output as [1, T, Hq, D], and None for the weights.
    """
    heads, length, dim = query.shape[1:]
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    # one split instead of many slices: the gradient of a slice is as long as the whole row
    sizes = [segment.stop - segment.start for segment in tree.segments]
    scaled = query[0].unflatten(0, (kv_heads, groups)) * (scaling or dim**-0.5)
    queries = scaled.split(sizes, dim=2)
    keys, values = key[0].split(sizes, dim=1), value[0].split(sizes, dim=1)
    paths = [tree.ancestry(index) for index in range(len(sizes))]
    depths = [sum(sizes[part] for part in path) for path in paths]
    hidden = _shared_mask(max(depths), sliding_window, query.device)
    outputs = []
    for index, (size, path, depth) in enumerate(zip(sizes, paths, depths, strict=True)):
        if size == 0:
            continue
        own_keys = torch.cat([keys[part] for part in path], dim=1)
        own_values = torch.cat([values[part] for part in path], dim=1)
        scores = queries[index].flatten(1, 2) @ own_keys.transpose(1, 2)
        scores = scores.unflatten(1, (groups, size))
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        # without a window everybody sees all that lies before the segment
        first = 0 if sliding_window else depth - size
        # no gradient of the mask: the softmax passes none to what it gave no weight
        with torch.no_grad():
            unseen = hidden[depth - size : depth, first:depth]
            scores[..., first:].masked_fill_(unseen, float("-inf"))
        weights = scores.softmax(-1)
        outputs.append((weights.flatten(1, 2) @ own_values).unflatten(1, (groups, size)))
    # [Hkv, G, T, D]
    output = torch.cat(outputs, dim=2).flatten(0, 1)
    assert output.shape == (heads, length, dim)
    return output.transpose(0, 1)[None], None


def hidden_keys(length: int, window: int | None, device: torch.device) -> Tensor:
    """Return what each position of a path may not see of it, as bool [length, length]."""
    everything = torch.ones(length, length, dtype=torch.bool, device=device)
    future = everything.triu(1)
    return future if window is None else future | everything.tril(-window)


# who sees whom depends on the two depths only: the masks of all segments and layers are corners of
# one; a model has at most two kinds of layers, with a window and without
_shared_mask = lru_cache(maxsize=2)(hidden_keys)

AttentionInterface.register(NAME, tree_attention)
