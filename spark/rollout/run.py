"""One tree while it grows: how its trajectories take turns, branch and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from spark.branching.base import BranchAt, State
from spark.core import Node, Tree
from spark.engines.base import ContextError, Engine, SamplingParams
from spark.envs.base import Env, EnvSource
from spark.rollout.ask import ask, text_of
from spark.rollout.chat import ACTION_CLOSE, Chat, command_of
from spark.rollout.config import RolloutConfig
from spark.rollout.constraint import ActionTrie
from spark.rollout.record import Record
from spark.rollout.trajectory import End, Trajectory, add_given
from spark.rollout.turnstile import Turnstile
from spark.seeds import derive_seed

NOTHING_HAPPENS = "Nothing happens."
"""Answer to a decision that contains no command; the environment is not asked."""

Kind = Literal["turn", "fork", "leaf", "error"]


@dataclass(kw_only=True)
class TreeRun:
    """Grows one tree; `grow` may be called once."""

    task: str
    seed: int
    engine: Engine
    source: EnvSource
    chat: Chat
    config: RolloutConfig
    trie: ActionTrie | None
    notify: Callable[[Kind, int], None]
    record: Record = field(default_factory=Record)

    def __post_init__(self) -> None:
        self.rule = self.config.make_rule()
        self.budget = self.config.make_budget()
        self.turnstile = Turnstile()
        self.group: asyncio.TaskGroup

    async def grow(self) -> Tree:
        """Roll the tree out and return it; failures are in its `info`, only cancelling raises."""
        env: Env | None = None
        seq: int | None = None
        try:
            env = self.source.make()
            observation, info = await ask(
                env, "reset", self.task, self.seed, seconds=self.config.step_seconds
            )
            prompt = Node(parent=None, turn=-1)
            add_given(prompt, self.chat.prompt(text_of(observation)))
            self.record.add(prompt, -1, ())
            seq = await self.engine.open(prompt.tokens)
            first = Trajectory(
                seq=seq, env=env, lineage=(), parent=0, admissible=info.get("admissible"), turn=-1
            )
            await self._from_prompt(first, 0, self.config.start)
            missing = self.config.leaves - len(self.record.ended)
            if self.config.refill and missing > 0 and not self.budget.expired():
                self.budget.close()
                await self._from_prompt(first, self.config.start, missing)
        except Exception as error:
            self._failed(error, -1, (), 0)
        finally:
            await self._free(env, seq)
        shown = ("rule", "branch_at", "pacing", "leaves", "roots", "width", "horizon")
        plan = {name: getattr(self.config, name) for name in shown}
        return self.record.tree(self.task, self.seed, {"config": plan})

    async def _from_prompt(self, first: Trajectory, number: int, count: int) -> None:
        """Run `count` trajectories from the prompt, and what branches from them, to the end."""
        roots = await self._children(first, count, "next", number)
        async with asyncio.TaskGroup() as self.group:
            self._start(roots)

    def _start(self, trajectories: list[Trajectory]) -> None:
        """Let trajectories run; all have their places before the first one moves."""
        for each in trajectories:
            self.turnstile.move(each, each.earliest, each.lineage)
        for each in trajectories:
            self.group.create_task(self._run(each))

    async def _run(self, t: Trajectory) -> None:
        """Advance one trajectory to its end; whatever happens, what it holds is freed."""
        try:
            while t.end is None:
                t.end = self._spent(t) or await self._turn(t)
        except Exception as error:
            t.end = "error"
            self.record.close(t)
            self._failed(error, t.turn, t.lineage, t.parent)
        finally:
            self.turnstile.leave(t)
            self.record.ended.append(t)
            await self._free(t.env, t.seq)
        self.notify("leaf", 1)

    def _spent(self, t: Trajectory) -> End | None:
        """Return which budget has run out for `t`, if any."""
        if self.budget.expired():
            return "seconds"
        limit = self.budget.leaf_tokens
        return "tokens" if limit is not None and t.own_sampled >= limit else None

    async def _turn(self, t: Trajectory) -> End | None:
        """Take one decision, act on it, branch where the rule and the budget say so."""
        if await self._decide(t) == "context":
            self.record.close(t)
            return "context"
        if self.config.branch_at == "flagged":
            await self._branch(t, "flagged")
        end = await self._act(t)
        if end is not None:
            return end
        # a trajectory whose budget is spent ends here, and what has ended does not branch
        if self.config.branch_at == "next" and self._spent(t) is None:
            await self._branch(t, "next")
        t.next_turn()
        self.turnstile.move(t, t.turn, t.lineage)
        return None

    async def _decide(self, t: Trajectory) -> str:
        """Sample the current decision to its end and return why it ended."""
        while True:
            sample = await self.engine.sample(t.seq, self._params(t))
            t.add_sampled(sample)
            self.record.account.generated += len(sample.tokens)
            self.record.weight_version = sample.weight_version
            self.notify("turn", len(sample.tokens))
            if sample.finish_reason != "trigger":
                return sample.finish_reason
            if self._room(t) <= 0:
                return "length"
            await self._branch(t, "within", sample.trigger)

    def _room(self, t: Trajectory) -> int:
        """Return how many more tokens the current decision may take."""
        room = self.config.max_tokens - len(t.decision)
        limit = self.budget.leaf_tokens
        return room if limit is None else min(room, limit - t.own_sampled)

    def _params(self, t: Trajectory) -> SamplingParams:
        config = self.config
        constraint = None
        if self.trie is not None and t.admissible:
            constraint = self.trie.constraint(t.admissible, before=t.decision)
        watching = config.branch_at == "within" and t.may_branch
        return SamplingParams(
            max_tokens=self._room(t),
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            seed=derive_seed("sample", self.seed, t.lineage, t.turn),
            stop=(ACTION_CLOSE,),
            stop_token_ids=self.chat.stop_token_ids,
            constraint=constraint,
            watch=self.rule.watch if watching else None,
        )

    async def _act(self, t: Trajectory) -> End | None:
        """Execute the decision, append the environment's answer, return why `t` ends if it does."""
        node = t.node
        assert node is not None, "a decision has at least one token"
        self.record.close(t)
        command = command_of(self.chat.decode(t.decision))
        if command is None and self._spent(t) == "tokens":
            return "tokens"
        observation, over = NOTHING_HAPPENS, False
        node.invalid = command is None or (t.admissible is not None and command not in t.admissible)
        t.invalid += node.invalid
        if command is not None:
            answer = await ask(t.env, "step", command, seconds=self.config.step_seconds)
            said, reward, terminated, truncated, info = answer
            observation = text_of(said)
            t.steps += 1
            self.record.account.env_steps += 1
            node.reward = float(reward)
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
        return None

    async def _branch(self, t: Trajectory, at: BranchAt, sample_trigger: str | None = None) -> None:
        """Ask the rule and the budget, and fork if both agree; `t` goes on as child 0."""
        if not t.may_branch:
            return
        wish = self.rule.decide(
            State(
                text=self.chat.decode(t.decision),
                entropies=t.entropies,
                turn=t.turn,
                horizon=self.config.horizon,
                lineage=t.lineage,
                seed=self.seed,
                sample_trigger=sample_trigger,
            )
        )
        if wish.width < 2:
            return
        granted = await self._granted(t, wish.width - 1)
        if granted == 0:
            t.may_branch = False
            self.turnstile.move(t, t.earliest, t.lineage)
            return
        try:
            children = await self._children(t, granted, at, 1)
        except Exception as error:
            # the fork failed, not the trajectory
            self._failed(error, t.turn, t.lineage, t.parent)
            return
        self.record.nodes[t.parent].trigger = wish.trigger
        self.record.account.forks += granted
        self.record.account.reused += sum(child.path_sampled for child in children)
        t.lineage = (*t.lineage, 0)
        self.turnstile.move(t, t.earliest, t.lineage)
        self._start(children)
        self.notify("fork", granted)

    async def _granted(self, t: Trajectory, wanted: int) -> int:
        """Reserve up to `wanted` leaves once everybody who comes earlier has asked."""
        place: dict[str, Any] = {"turn": t.turn, "lineage": t.lineage}
        if self.budget.available(**place) == 0:
            return 0
        await self.turnstile.first(t)
        return self.budget.grant(wanted, **place)

    async def _children(
        self, t: Trajectory, count: int, at: BranchAt, number: int
    ) -> list[Trajectory]:
        """Fork the environment and the sequence of `t`; children are numbered from `number`."""
        envs: list[Env] = []
        tip = self.engine.length(t.seq)
        try:
            for _ in range(count):
                envs.append(await ask(t.env, "fork", seconds=self.config.step_seconds))
            seqs = await self.engine.fork(
                t.seq, count, at=tip - len(t.decision) if at == "flagged" else None
            )
        except BaseException:
            for env in envs:
                await self._free(env, None)
            raise
        if t.env.fork_kind == "replay":
            self.record.account.env_steps_replayed += count * t.steps
        if at == "within":
            self.record.close(t)
        born = zip(seqs, envs, strict=True)
        return [t.born(seq, env, number + i, at) for i, (seq, env) in enumerate(born)]

    def _failed(self, error: Exception, turn: int, lineage: tuple[int, ...], node: int) -> None:
        self.record.failed(error, turn, lineage, node)
        self.notify("error", 1)

    async def _free(self, env: Env | None, seq: int | None) -> None:
        """Release and close; a failure to do so is recorded like any other."""
        try:
            try:
                if seq is not None:
                    await self.engine.release(seq)
            finally:
                if env is not None:
                    env.close()
        except Exception as error:
            self._failed(error, -1, (), 0)
