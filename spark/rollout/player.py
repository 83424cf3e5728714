"""How a trajectory takes its turn: the decision sampled, executed, and answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from spark.branching.base import Budget
from spark.core import Watch
from spark.engines.base import ContextError, Engine, Sample, SamplingParams
from spark.rollout.ask import ask, reward_of, text_of
from spark.rollout.chat import ACTION_CLOSE, Chat, command_of, same_but_for_spaces
from spark.rollout.config import RolloutConfig
from spark.rollout.constraint import ActionTrie
from spark.rollout.record import Record
from spark.rollout.trajectory import End, Trajectory, add_given
from spark.seeds import derive_seed

NOTHING_HAPPENS = "Nothing happens."
"""Answer to a decision that contains no command; the environment is not asked."""


@dataclass(kw_only=True, slots=True)
class Player:
    """Plays the trajectories of one tree, and keeps its record."""

    engine: Engine
    chat: Chat
    config: RolloutConfig
    trie: ActionTrie | None
    budget: Budget
    record: Record
    seed: int

    def spent(self, t: Trajectory) -> End | None:
        """Return which budget has run out for `t`, if any."""
        if self.budget.expired():
            return "seconds"
        limit = self.budget.leaf_tokens
        return "tokens" if limit is not None and t.own_sampled >= limit else None

    def room(self, t: Trajectory) -> int:
        """Return how many more tokens the current decision may take."""
        room = self.config.max_tokens - len(t.decision)
        limit = self.budget.leaf_tokens
        return room if limit is None else min(room, limit - t.own_sampled)

    async def sample(self, t: Trajectory, watch: Watch | None) -> Sample:
        """Sample the current decision to its end, or to where `watch` pauses it."""
        sample = await self.engine.sample(t.seq, self._params(t, watch))
        t.add_sampled(sample)
        self.record.account.generated += len(sample.tokens)
        if sample.tokens:
            # a full context may be known without asking the model, whose weights it does not tell
            self.record.weight_version = sample.weight_version
        return sample

    def _params(self, t: Trajectory, watch: Watch | None) -> SamplingParams:
        config = self.config
        constraint = None
        if self.trie is not None and t.admissible:
            constraint = self.trie.constraint(t.admissible, before=t.decision)
        return SamplingParams(
            max_tokens=self.room(t),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            seed=derive_seed("sample", self.seed, t.lineage, t.turn),
            stop=(ACTION_CLOSE,),
            stop_token_ids=self.chat.stop_token_ids,
            constraint=constraint,
            watch=watch,
        )

    async def act(self, t: Trajectory) -> End | None:
        """Execute the decision, append the environment's answer, return why `t` ends if it does."""
        node = t.node
        assert node is not None, "a decision has at least one token"
        self.record.close(t)
        command = command_of(self.chat.decode(t.decision))
        if command is None and self.spent(t) == "tokens":
            return "tokens"
        observation, over = NOTHING_HAPPENS, False
        if command is not None and t.admissible is not None:
            command = spelt(command, t.admissible)
        node.invalid = command is None or (t.admissible is not None and command not in t.admissible)
        t.invalid += node.invalid
        if command is not None:
            asked = time.perf_counter()
            answer = await ask(t.env, "step", command, seconds=self.config.step_seconds)
            self.record.account.env_seconds += time.perf_counter() - asked
            said, reward, terminated, truncated, info = answer
            observation = text_of(said)
            t.steps += 1
            self.record.account.env_steps += 1
            node.reward = reward_of(reward)
            t.won = bool(info.get("won"))
            t.admissible = info.get("admissible")
            over = terminated or truncated
        if over:
            return "environment"
        if self.config.invalid_limit is not None and t.invalid >= self.config.invalid_limit:
            return "invalid"
        if t.turn + 1 >= self.config.horizon:
            return "horizon"
        reply = self.chat.reply(observation, after=t.decision)
        try:
            await self.engine.extend(t.seq, reply)
        except ContextError:
            return "context"
        add_given(node, reply)
        t.observations += (observation,)
        return None


def spelt(command: str, admissible: Sequence[str]) -> str:
    """Return the admissible command that differs from `command` by spaces only, else `command`."""
    if command in admissible:
        return command
    return next((each for each in admissible if same_but_for_spaces(each, command)), command)
