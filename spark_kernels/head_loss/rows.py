"""Statistics of rows of logits and their gradient: plain torch, and the choice of the kernel."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor


@dataclass
class Statistics:
    """Of the scaled logits x = softcap(logits) / temperature of each row, all float32 [C].

    peak: max x. total: sum e^(x - peak). moment: sum (x - peak) e^(x - peak). chosen: x of the
    row's token, -inf where the token is not in this part of the vocabulary.
    """

    peak: Tensor
    total: Tensor
    moment: Tensor
    chosen: Tensor

    @property
    def normaliser(self) -> Tensor:
        """Log of the sum of e^x."""
        return self.peak + self.total.log()

    @property
    def logprob(self) -> Tensor:
        """Log-probability of the row's token."""
        return self.chosen - self.normaliser

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return self.total.log() - self.moment / self.total


@dataclass
class Scaling:
    """How logits become scores: inverse [C] is 1 / temperature; softcap 0 = off."""

    inverse: Tensor
    softcap: float

    def apply(self, logits: Tensor, inverse: Tensor) -> Tensor:
        """Return fresh float32 scores of float logits; `inverse` broadcasts."""
        if self.softcap:
            return torch.tanh(logits / self.softcap) * (self.softcap * inverse)
        return logits * inverse

    def slope(self, scores: Tensor, inverse: Tensor) -> Tensor:
        """Return the derivative of the scores by the logits."""
        if self.softcap:
            return (1 - (scores / (self.softcap * inverse)) ** 2) * inverse
        return inverse.expand_as(scores)


def statistics(logits: Tensor, tokens: Tensor, scaling: Scaling) -> Statistics:
    """Return the statistics of every row of `logits` [C, V]; a token outside [0, V) is not here."""
    if fused(logits.device) and logits.dtype != torch.float64:
        from spark_kernels.head_loss.launch import launch_statistics

        return Statistics(*launch_statistics(logits, tokens, scaling.inverse, scaling.softcap))
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    inverse = scaling.inverse[:, None]
    scores = scaling.apply(logits.to(wide), inverse)
    here = (tokens >= 0) & (tokens < logits.shape[1])
    chosen = scores.gather(1, tokens.where(here, 0)[:, None])[:, 0].where(here, -torch.inf)
    peak = scores.amax(1)
    scores -= peak[:, None]
    weights = scores.exp_()
    # w log w, which is 0 for a logit of -inf
    moment = -torch.special.entr(weights).sum(1)
    return Statistics(peak, weights.sum(1), moment, chosen)


def gradient_(
    logits: Tensor,
    tokens: Tensor,
    scaling: Scaling,
    stats: Statistics,
    by_logprob: Tensor,
    by_entropy: Tensor,
) -> None:
    """Overwrite `logits` [C, V] by the gradient of a loss with these derivatives, float32 [C].

    d logprob / d x_v = [v = token] - p_v;  d entropy / d x_v = -p_v (log p_v + entropy).
    """
    if fused(logits.device) and logits.dtype != torch.float64:
        from spark_kernels.head_loss.launch import launch_gradient

        columns = (stats.normaliser, stats.entropy, by_logprob, by_entropy)
        launch_gradient(logits, tokens, scaling.inverse, scaling.softcap, *columns)
        return
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    inverse = scaling.inverse[:, None]
    scores = scaling.apply(logits.to(wide), inverse)
    slope = scaling.slope(scores, inverse)
    logs = scores - stats.normaliser[:, None]
    result = logs.exp()
    # e^-inf * -inf is nothing
    logs = logs.masked_fill_(logs == -torch.inf, 0.0).add_(stats.entropy[:, None])
    result.mul_(logs.mul_(by_entropy[:, None]).add_(by_logprob[:, None])).neg_()
    here = (tokens >= 0) & (tokens < logits.shape[1])
    result.scatter_add_(1, tokens.where(here, 0)[:, None], (by_logprob * here)[:, None])
    logits.copy_(result.mul_(slope))


@dataclass
class Limits:
    """The tokens that limited rows of a chunk choose from, as far as they are in this part.

    row, token: int64 [K], index into the chunk and into the part, by ascending row.
    limited: bool [C], the rows that have such tokens in any part.
    """

    row: Tensor
    token: Tensor
    limited: Tensor

    def statistics(
        self, logits: Tensor, tokens: Tensor, scaling: Scaling, whole: Statistics
    ) -> Statistics:
        """Return `whole` with the statistics of the limited rows over their tokens."""
        scores = scaling.apply(
            logits[self.row, self.token].to(whole.peak.dtype), self._inverse(scaling)
        )
        nothing = torch.full_like(whole.peak, -torch.inf)
        peak = nothing.scatter_reduce(0, self.row, scores, "amax")
        shifted = scores - peak[self.row]
        weights = shifted.exp()
        zeros = torch.zeros_like(whole.total)
        total = zeros.index_add(0, self.row, weights)
        moment = zeros.index_add(0, self.row, weights * shifted)
        chosen = nothing.scatter_reduce(
            0, self.row, scores.where(self.token == tokens[self.row], -torch.inf), "amax"
        )
        own = (peak, total, moment, chosen)
        every = (whole.peak, whole.total, whole.moment, whole.chosen)
        return Statistics(*(a.where(self.limited, b) for a, b in zip(own, every, strict=True)))

    def gradient_(
        self,
        logits: Tensor,
        tokens: Tensor,
        scaling: Scaling,
        stats: Statistics,
        by_logprob: Tensor,
        by_entropy: Tensor,
    ) -> None:
        """As the function `gradient_`; tokens that are not allowed get 0."""
        few = self.gradient(logits, tokens, scaling, stats, by_logprob, by_entropy)
        free = ~self.limited
        # next to a normaliser of few tokens the others' probabilities could overflow
        peak = stats.peak.masked_fill(self.limited, 1e30)
        whole = Statistics(peak, stats.total, stats.moment, stats.chosen)
        gradient_(logits, tokens, scaling, whole, by_logprob * free, by_entropy * free)
        self.put_(logits, few)

    def gradient(
        self,
        logits: Tensor,
        tokens: Tensor,
        scaling: Scaling,
        stats: Statistics,
        by_logprob: Tensor,
        by_entropy: Tensor,
    ) -> Tensor:
        """Return the gradient [K] of the allowed tokens' logits."""
        few = logits[self.row, self.token][:, None]
        pick = (tokens[self.row] == self.token).long() - 1
        every = (stats.peak, stats.total, stats.moment, stats.chosen)
        columns = Statistics(*(x[self.row] for x in every))
        one_each = Scaling(self._inverse(scaling), scaling.softcap)
        gradient_(few, pick, one_each, columns, by_logprob[self.row], by_entropy[self.row])
        return few[:, 0]

    def put_(self, logits: Tensor, values: Tensor) -> None:
        """Write `values` [K] over the allowed tokens' logits."""
        logits[self.row, self.token] = values

    def _inverse(self, scaling: Scaling) -> Tensor:
        return scaling.inverse[self.row]


@functools.cache
def fused(device: torch.device) -> bool:
    """Return whether the Triton kernels run here; warn once where they should and cannot."""
    if device.type != "cuda":
        return False
    if find_spec("triton") is None:
        warnings.warn(
            "triton is not installed: head_loss runs its chunked torch path on CUDA; "
            "pip install triton",
            stacklevel=4,
        )
        return False
    return True
