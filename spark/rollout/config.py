"""Everything a rollout can be told, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from spark.branching import PLANNERS, RULES, TreeBudget
from spark.branching.base import BranchAt, BranchRule, Budget, Planner
from spark.registry import Registry


@dataclass(kw_only=True, slots=True, frozen=True)
class RolloutConfig:
    """How one task becomes one tree. Raises ValueError naming the field that makes no sense.

    Example:
        RolloutConfig(leaves=8, roots=4, width=2, horizon=20, rule="spark", pacing="paced")
    """

    leaves: int = 8
    """N: trajectories per tree at most."""
    roots: int = 4
    """M: trajectories that start at the prompt; with neither rule nor planner all N do."""
    width: int = 2
    """B: continuations of a state that branches."""
    rule: str = "spark"
    """spark, entropy, random, fixed, arpo, segment, score or none."""
    branch_at: BranchAt = "next"
    """next: execute the flagged decision, fork for the next one (the paper); flagged: sample the
    flagged decision B times; within: fork in the middle of it, at the rule's trigger."""
    entropy_threshold: float = 1.0
    """Rule entropy: nats above which a decision (within: a token) counts as unsure."""
    entropy_of: Literal["mean", "max"] = "mean"
    """Rule entropy: how a decision's token entropies are pooled."""
    probability: float = 0.2
    """Rules random and arpo: probability that a decision branches."""
    fixed_turns: tuple[int, ...] = ()
    """Rule fixed: decisions that branch, from 0."""
    entropy_weight: float = 0.2
    """Rule arpo: what a full rise of the entropy adds to the probability."""
    segment_tokens: int = 512
    """Rule segment: sampled tokens after which a path branches."""
    score: str = "novelty"
    """Rule score: novelty, or a function of the state, "module:name"."""
    score_above: float = 5.0
    """Rule score: a state with a higher score branches."""

    pacing: Literal["paced", "first_come"] = "paced"
    """paced: release the N - M spare leaves evenly over the episode; first_come: at once."""
    pace_turns: float | None = None
    """Expected decisions per episode to pace over, e.g. the last batch's mean; None = horizon."""
    root_cap: int | None = None
    """Spare leaves one root's descendants may get; None = no limit, but when paced twice the even
    share."""
    planner: str = "none"
    """What the leaves left over are for once all trajectories have ended: none, refill (anew at
    the prompt), random, entropy or success. Until then ended leaves keep their KV and
    environments."""
    plan_spots: int = 2
    """Planners random, entropy, success: states grown from in a round (random: for each root)."""
    plan_rounds: int = 1
    """Planners random, entropy, success: rounds."""
    plan_penalty: float = 0.5
    """Planner entropy: nats taken from a state for every trajectory already started there."""
    max_generated_tokens: int | None = None
    """Tokens a tree may sample, split evenly over its leaves; None = no limit."""
    max_seconds: float | None = None
    """Wall-clock seconds of a tree, looked at between decisions; None = no limit."""

    horizon: int = 20
    """K: decisions a trajectory may take."""
    max_tokens: int = 64
    """Tokens one decision may take."""
    temperature: float = 1.0
    """0 = greedy."""
    top_k: int = 0
    """0 = off."""
    top_p: float = 1.0
    min_p: float = 0.0

    constrain: bool = True
    """Inside `<action>` allow only the environment's admissible commands."""
    exclude_commands: tuple[str, ...] = ()
    """First words of commands the constraint leaves out, e.g. look, examine, inventory, help."""
    invalid_limit: int | None = None
    """End an episode at this many inadmissible commands; None = never."""
    step_seconds: float = 300.0
    """Time limit of one call of an environment that answers asynchronously, as pools do; one that
    runs in this process cannot be interrupted."""

    def __post_init__(self) -> None:
        whole = ("leaves", "roots", "horizon", "max_tokens", "segment_tokens")
        for name in (*whole, "plan_spots", "plan_rounds"):
            self._need(name, getattr(self, name) >= 1, "must be at least 1")
        self._need("roots", self.roots <= self.leaves, f"must not exceed leaves={self.leaves}")
        if self.rule != "none":
            self._need("width", self.width >= 2, 'must be at least 2 to branch; or rule="none"')
        for name in ("branch_at", "entropy_of", "pacing"):
            self._need_choice(name)
        for name in ("pace_turns", "max_seconds", "invalid_limit", "step_seconds"):
            self._need(name, (value := getattr(self, name)) is None or value > 0, "must be > 0")
        self._need("root_cap", self.root_cap is None or self.root_cap >= 0, "must be >= 0")
        branches = self.rule != "none" or self.planner != "none"
        spare = f'takes all leaves={self.leaves}, nothing can branch: use fewer, or rule="none"'
        self._need("roots", not branches or self.roots < self.leaves, spare)
        budget = self.max_generated_tokens
        enough = budget is None or budget >= self.leaves
        self._need("max_generated_tokens", enough, "must give every leaf at least one token")
        self._need("probability", 0 <= self.probability <= 1, "must lie in [0, 1]")
        self._need("temperature", self.temperature >= 0, "must be >= 0")
        self._need("top_k", self.top_k >= 0, "must be >= 0 (0 = off)")
        self._need("top_p", 0 < self.top_p <= 1, "must lie in (0, 1]")
        self._need("min_p", 0 <= self.min_p < 1, "must lie in [0, 1)")
        if self.branch_at == "within" and self.make_rule().watch is None:
            raise ValueError(f'branch_at="within" needs a rule with a trigger, not {self.rule!r}')
        self.make_rule()
        self.make_planner()

    @property
    def start(self) -> int:
        """Trajectories that start at the prompt."""
        return self.leaves if self.rule == self.planner == "none" else self.roots

    def make_rule(self) -> BranchRule:
        """Build the rule from the fields of this configuration that it shares."""
        rule: BranchRule = self._filled("rule", RULES)
        return rule

    def make_planner(self) -> Planner | None:
        """Build the planner in the same way; None where there is none."""
        return None if self.planner == "none" else self._filled("planner", PLANNERS)

    def make_budget(self) -> Budget:
        """Build the budget of one tree."""
        paced = self.pacing == "paced"
        even_share = -(-(self.leaves - self.start) // self.start)
        default_cap = 2 * even_share if paced else None
        return TreeBudget(
            leaves=self.leaves,
            roots=self.start,
            pace_turns=(self.pace_turns or self.horizon) if paced else None,
            root_cap=default_cap if self.root_cap is None else self.root_cap,
            tokens=self.max_generated_tokens,
            seconds=self.max_seconds,
        )

    def _filled(self, noun: str, registry: Registry) -> Any:
        name = getattr(self, noun)
        kind = registry[name]
        self._need(noun, is_dataclass(kind), "is no dataclass: write @dataclass above its class")
        known = {field.name for field in fields(self)}
        shared = [field.name for field in fields(kind) if field.name in known]
        return registry.make(name, **{each: getattr(self, each) for each in shared})

    def _need(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r} {remedy}")

    def _need_choice(self, name: str) -> None:
        choices = {
            "branch_at": ("next", "flagged", "within"),
            "entropy_of": ("mean", "max"),
            "pacing": ("paced", "first_come"),
        }[name]
        self._need(name, getattr(self, name) in choices, f"must be one of {', '.join(choices)}")
