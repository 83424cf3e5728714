"""Muon on the matrices and AdamW on the rest, behind one optimiser.

On small models trained from scratch it needs several times fewer steps than AdamW alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon


class MuonAdamW(torch.optim.Optimizer):
    """Steps Muon on the hidden matrices of a model and AdamW on embeddings, head and vectors."""

    def __init__(self, model: nn.Module, *, matrix_lr: float, lr: float) -> None:
        """`matrix_lr`: rate of Muon; `lr`: rate of AdamW."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        tables = [each for each in model.modules() if isinstance(each, nn.Embedding)]
        head = getattr(model, "get_output_embeddings", lambda: None)()
        apart = {each.weight for each in (*tables, head) if each is not None}
        for parameter in model.parameters():
            if parameter.requires_grad:
                hidden = parameter.ndim == 2 and parameter not in apart
                (matrices if hidden else others).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=matrix_lr, weight_decay=0.0),
            AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    # torch declares two overloads for closures; none is taken here
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step both; a closure is not supported."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return both states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states; the groups stay those of the parts, so that schedules reach them."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
