"""The rules: each says at which states a trajectory deserves `width` continuations."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from spark.branching.base import Decision, State
from spark.core import Watch
from spark.seeds import unit_float


@dataclass(kw_only=True, frozen=True)
class SparkRule:
    """The policy flags its own key states with `<explore>` (Spark, arXiv 2601.20209, Eq. 5)."""

    width: int = 2
    tag: str = "explore"
    """Name of the tag, without brackets."""

    @property
    def watch(self) -> Watch:
        """Pause right after the closing tag."""
        return Watch(tags=(f"</{self.tag}>",))

    def decide(self, state: State) -> Decision:
        """Branch when the decision contains the tag."""
        flagged = f"<{self.tag}>" in state.text
        return Decision(width=self.width, trigger=self.tag) if flagged else Decision()


@dataclass(kw_only=True, frozen=True)
class EntropyRule:
    """The policy is unsure: the decision's exact entropy, nats, lies above a threshold."""

    width: int = 2
    entropy_threshold: float = 1.0
    entropy_of: Literal["mean", "max"] = "mean"

    @property
    def watch(self) -> Watch:
        """Pause right after a token drawn above the threshold."""
        return Watch(entropy_above=self.entropy_threshold)

    def decide(self, state: State) -> Decision:
        """Branch at the engine's entropy trigger, or when the decision as a whole was unsure."""
        unsure = state.sample_trigger == "entropy"
        if not unsure and state.entropies:
            pooled = fmean(state.entropies) if self.entropy_of == "mean" else max(state.entropies)
            unsure = pooled > self.entropy_threshold
        return Decision(width=self.width, trigger="entropy") if unsure else Decision()


@dataclass(kw_only=True, frozen=True)
class RandomRule:
    """The control: every decision branches with the same probability."""

    width: int = 2
    probability: float = 0.2
    watch = None

    def decide(self, state: State) -> Decision:
        """Branch by a number that depends only on the tree's seed, the lineage and the turn."""
        lucky = unit_float("branch", state.seed, state.lineage, state.turn) < self.probability
        return Decision(width=self.width, trigger="random") if lucky else Decision()


@dataclass(kw_only=True, frozen=True)
class FixedRule:
    """Branch after the decisions with the given indices (from 0), whatever they are."""

    width: int = 2
    fixed_turns: tuple[int, ...] = ()
    watch = None

    def __post_init__(self) -> None:
        if not self.fixed_turns:
            raise ValueError("fixed_turns=() never branches: name decisions, from 0")

    def decide(self, state: State) -> Decision:
        """Branch when it is one of the turns."""
        due = state.turn in self.fixed_turns
        return Decision(width=self.width, trigger="fixed") if due else Decision()


@dataclass(kw_only=True, frozen=True)
class ArpoRule:
    """The answer to an observation begins less sure than the first decision did (ARPO).

    arXiv 2507.19849: the state after an observation branches with probability
    P = probability + entropy_weight * dH, dH being the rise of the mean entropy of the first 20
    tokens since the first decision, in units of that of the uniform distribution (0.5 and 0.2
    there, where entropies are estimated from ten log-probabilities; here they are exact). The
    copies sample the same decision: use it with `branch_at="flagged"`.
    """

    width: int = 2
    probability: float = 0.5
    entropy_weight: float = 0.2
    watch = None

    def decide(self, state: State) -> Decision:
        """Branch by chance; the first decision, which has seen no answer yet, never does."""
        if state.turn == 0 or not state.entropies or not state.first_entropies:
            return Decision()
        rise = fmean(state.entropies[:20]) - fmean(state.first_entropies[:20])
        chance = self.probability + self.entropy_weight * rise / state.max_entropy
        lucky = unit_float("branch", state.seed, state.lineage, state.turn) < chance
        return Decision(width=self.width, trigger="entropy") if lucky else Decision()


@dataclass(kw_only=True, frozen=True)
class SegmentRule:
    """Branch after every segment of a fixed number of tokens, whatever it says (TreePO).

    arXiv 2508.17445, with segments of 512 tokens; a segment ends here with the decision in which
    the path's sampled tokens pass a multiple of `segment_tokens`.
    """

    width: int = 2
    segment_tokens: int = 512
    watch = None

    def decide(self, state: State) -> Decision:
        """Branch when the decision has completed a segment."""
        before = state.path_sampled - len(state.entropies)
        done = state.path_sampled // self.segment_tokens > before // self.segment_tokens
        return Decision(width=self.width, trigger="segment") if done else Decision()


@dataclass(kw_only=True, frozen=True)
class NoRule:
    """Independent chains: nothing ever branches."""

    watch = None

    def decide(self, state: State) -> Decision:
        """Go on alone."""
        return Decision()
