"""Runs one step's flattened batch through the model and keeps its paged state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from spark.engines.local.attention import attention, model_configs
from spark.engines.local.model import ModelShape
from spark_kernels import kv_fork, tree_attention


@dataclass(kw_only=True, slots=True)
class Step:
    """One flattened batch; a slot is `block * block_size + offset`.

    Example:
        Step(tokens=[5, 6, 9], positions=[0, 1, 7], slots=[16, 17, 39], rows=[17, 39], plan=plan)
    """

    tokens: list[int]
    """The T tokens to compute; may be empty."""
    positions: list[int]
    slots: list[int]
    """Where each token's KV and hidden state go."""
    rows: list[int]
    """Slots whose next-token logits are wanted, of this step or of an earlier one."""
    plan: Any = None
    """The block pool's plan of this step; None when there is nothing to compute."""


class ModelRunner:
    """Holds the paged KV of every layer and the paged final hidden states.

    With the hidden states, the logits behind any earlier token cost one row of the LM head.
    """

    def __init__(
        self, model: PreTrainedModel, shape: ModelShape, num_blocks: int, block_size: int
    ) -> None:
        self.model: Any = model
        self._configs = model_configs(model)
        self._plan: Any = None

        def buffer(heads: int, width: int) -> torch.Tensor:
            size = (num_blocks, heads, block_size, width)
            return torch.zeros(size, dtype=model.dtype, device=model.device)

        self._keys = {layer: buffer(*size) for layer, size in shape.layers.items()}
        self._values = {layer: buffer(*size) for layer, size in shape.layers.items()}
        hidden = buffer(1, shape.hidden_size)
        self._groups = _by_shape([*self._keys.values(), *self._values.values(), hidden])
        self._hidden = hidden.view(-1, shape.hidden_size)

    @torch.inference_mode()
    def forward(self, step: Step) -> torch.Tensor | None:
        """Compute the step's tokens; return logits [len(rows), vocab_size], None without rows."""
        if self.model.training:
            self.model.eval()
        hidden = self._compute(step) if step.tokens else None
        if not step.rows:
            return None
        if hidden is None or step.rows != step.slots:
            hidden = self._hidden[self._tensor(step.rows)]
        return self._head(hidden)

    @torch.inference_mode()
    def copy(self, pairs: list[tuple[int, int, int]]) -> None:
        """Copy (source block, destination block, used tokens) in every buffer."""
        for buffers in self._groups:
            kv_fork(buffers, pairs)

    def _compute(self, step: Step) -> torch.Tensor:
        """Write KV and hidden states of the step's tokens; return the latter, [T, hidden_size]."""
        self._plan = step.plan
        with attention(self._configs, self._attend):
            output = self.model.base_model(
                input_ids=self._tensor(step.tokens)[None],
                position_ids=self._tensor(step.positions)[None],
                use_cache=False,
            )
        hidden: torch.Tensor = output.last_hidden_state[0]
        self._hidden.index_copy_(0, self._tensor(step.slots), hidden)
        return hidden

    def _attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **how: Any
    ) -> torch.Tensor:
        caches = self._keys[layer], self._values[layer]
        return tree_attention(query, key, value, *caches, self._plan, **how)

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits [R, vocab_size] of `hidden` [R, hidden_size].

        The model's own forward does it, so whatever it does to its logits (scales, soft caps) is
        done here too; only the layers below are replaced by the states that are known already.
        """
        base = self.model.base_model
        below = BaseModelOutputWithPast(last_hidden_state=cast(torch.FloatTensor, hidden[None]))
        own = base.__dict__.get("forward")
        base.__dict__["forward"] = lambda *args, **kwargs: below
        try:
            ids = torch.empty(1, len(hidden), dtype=torch.long, device=hidden.device)
            logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            del base.__dict__["forward"]
            if own is not None:
                base.__dict__["forward"] = own
        return logits

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)


def _by_shape(buffers: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group the buffers that one copy can move together."""
    groups: dict[torch.Size, list[torch.Tensor]] = {}
    for buffer in buffers:
        groups.setdefault(buffer.shape, []).append(buffer)
    return list(groups.values())
