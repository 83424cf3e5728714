"""One tree while it grows: how its trajectories take turns, branch and end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from spark.branching.base import BranchAt, State
from spark.core import Node, Tree
from spark.engines.base import Engine
from spark.envs.base import Env, EnvSource
from spark.rollout.ask import ask, free, text_of
from spark.rollout.chat import Chat
from spark.rollout.config import RolloutConfig
from spark.rollout.constraint import ActionTrie
from spark.rollout.player import Player
from spark.rollout.record import Record
from spark.rollout.spots import Stand, Stands
from spark.rollout.trajectory import End, Trajectory, add_given
from spark.rollout.turnstile import Turnstile

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
        self.player = Player(
            engine=self.engine,
            chat=self.chat,
            config=self.config,
            trie=self.trie,
            budget=self.budget,
            record=self.record,
            seed=self.seed,
        )
        self.stands = Stands(
            planner=self.config.make_planner(),
            engine=self.engine,
            seconds=self.config.step_seconds,
        )
        self.group: asyncio.TaskGroup
        self.alive: set[Trajectory] = set()
        """Whose sequences and environments are still to be freed."""

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
                seq=seq,
                env=env,
                lineage=(),
                parent=0,
                admissible=info.get("admissible"),
                turn=-1,
                observations=(observation,),
                children=self.config.start,
            )
            await self.stands.keep(first)
            started = await self._children(first, self.config.start, "next", 0)
            if not self.stands.owners():
                # nobody comes back to the prompt
                await self._free(env, seq)
                env = seq = None
            await self._finish(started)
            await self._grow_further()
        except Exception as error:
            self._failed(error, -1, (), 0)
        finally:
            # what a planner kept, and whatever was cancelled before it ran
            for t in list(self.alive):
                await self._free(t.env, t.seq)
            await self._free(env, seq)
        shown = ("rule", "branch_at", "pacing", "planner", "leaves", "roots", "width", "horizon")
        plan = {name: getattr(self.config, name) for name in shown}
        return self.record.tree(self.task, self.seed, {"config": plan})

    async def _finish(self, trajectories: list[Trajectory]) -> None:
        """Run trajectories, and what branches from them, to the end."""
        async with asyncio.TaskGroup() as self.group:
            self._start(trajectories)

    async def _grow_further(self) -> None:
        """Let the planner use the leaves that are left over, round after round."""
        number = 0
        while not self.budget.expired():
            spare = self.config.leaves - len(self.record.ended)
            chosen = self.stands.chosen(spare, number, self.seed, self.record.ended)
            started = [each for stand, count in chosen for each in await self._again(stand, count)]
            if not started:
                return
            self.budget.close()
            await self._finish(started)
            number += 1

    async def _again(self, stand: Stand, count: int) -> list[Trajectory]:
        """Return `count` new trajectories from a kept state; a failure leaves the others alone."""
        owner, then = stand.owner, stand.then
        then.lineage = owner.lineage
        try:
            await ask(owner.env, "restore", stand.snapshot, seconds=self.config.step_seconds)
            seqs, envs = await self._forked(then, count, stand.length)
        except Exception as error:
            self._failed(error, then.turn, then.lineage, then.parent)
            return []
        node, planner = self.record.nodes[then.parent], self.stands.planner
        assert planner is not None
        node.trigger = node.trigger or (planner.trigger if then.parent else None)
        self.record.account.forks += count if then.parent else 0
        self.record.account.reused += count * then.path_sampled
        if stand.replays:
            self.record.account.env_steps_replayed += then.steps
        born = zip(seqs, envs, strict=True)
        number, owner.children = owner.children, owner.children + count
        stand.grown += count
        return self._live([then.born(s, e, number + i, "within") for i, (s, e) in enumerate(born)])

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
                t.end = self.player.spent(t)
                if t.end is None:
                    await self.stands.keep(t)
                    t.end = await self._turn(t)
        except Exception as error:
            t.end = "error"
            self.record.close(t)
            self._failed(error, t.turn, t.lineage, t.parent)
        finally:
            self.turnstile.leave(t)
            self.record.end(t)
            if not self.stands.needs(t):
                self.alive.discard(t)
                await self._free(t.env, t.seq)
        self._tell("leaf", t.turn, t.lineage, t.parent)

    async def _turn(self, t: Trajectory) -> End | None:
        """Take one decision, act on it, branch where the rule and the budget say so."""
        if await self._decide(t) == "context":
            self.record.close(t)
            return "context"
        if self.config.branch_at == "flagged":
            await self._branch(t, "flagged")
        end = await self.player.act(t)
        if end is not None:
            return end
        # a trajectory whose budget is spent ends here, and what has ended does not branch
        if self.config.branch_at == "next" and self.player.spent(t) is None:
            await self._branch(t, "next")
        t.next_turn()
        self.turnstile.move(t, t.turn, t.lineage)
        return None

    async def _decide(self, t: Trajectory) -> str:
        """Sample the current decision to its end and return why it ended."""
        while True:
            watching = self.config.branch_at == "within" and t.may_branch
            sample = await self.player.sample(t, self.rule.watch if watching else None)
            self.notify("turn", len(sample.tokens))
            if sample.finish_reason != "trigger":
                return sample.finish_reason
            if self.player.room(t) <= 0:
                return "length"
            await self._branch(t, "within", sample.trigger)

    async def _branch(self, t: Trajectory, at: BranchAt, sample_trigger: str | None = None) -> None:
        """Ask the rule and the budget, and fork if both agree; `t` goes on as child 0."""
        if not t.may_branch:
            return
        state = State(
            text=self.chat.decode(t.decision),
            entropies=t.entropies,
            turn=t.turn,
            horizon=self.config.horizon,
            lineage=t.lineage,
            seed=self.seed,
            sample_trigger=sample_trigger,
            observations=t.observations,
            first_entropies=t.first_entropies,
            path_sampled=t.path_sampled,
            max_entropy=math.log(len(self.chat.tokenizer)),
        )
        slow = getattr(self.rule, "decide_async", None)
        wish = self.rule.decide(state) if slow is None else await slow(state)
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
        self._tell("fork", t.turn, t.lineage, t.parent, granted)

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
        tip = self.engine.length(t.seq)
        cut = tip - len(t.decision) if at == "flagged" else tip
        seqs, envs = await self._forked(t, count, cut)
        if at == "within":
            self.record.close(t)
        born = zip(seqs, envs, strict=True)
        return self._live([t.born(seq, env, number + i, at) for i, (seq, env) in enumerate(born)])

    async def _forked(self, t: Trajectory, count: int, length: int) -> tuple[list[int], list[Env]]:
        """Return `count` forks of the first `length` tokens of `t` and of its environment."""
        envs: list[Env] = []
        try:
            for _ in range(count):
                envs.append(await ask(t.env, "fork", seconds=self.config.step_seconds))
            seqs = await self.engine.fork(t.seq, count, at=length)
        except BaseException:
            for env in envs:
                await self._free(env, None)
            raise
        if t.env.fork_kind == "replay":
            self.record.account.env_steps_replayed += count * t.steps
        return seqs, envs

    def _live(self, born: list[Trajectory]) -> list[Trajectory]:
        """Return `born`, which are freed whatever happens from now on."""
        self.alive.update(born)
        return born

    def _failed(self, error: Exception, turn: int, lineage: tuple[int, ...], node: int) -> None:
        self.record.failed(error, turn, lineage, node)
        self._tell("error", turn, lineage, node)

    def _tell(
        self, kind: Kind, turn: int, lineage: tuple[int, ...], node: int, count: int = 1
    ) -> None:
        """Notify of something that is done: who listens can fail, and nobody is harmed."""
        try:
            self.notify(kind, count)
        except Exception as error:
            self.record.failed(error, turn, lineage, node)

    async def _free(self, env: Env | None, seq: int | None) -> None:
        """Release and close; a failure to do so is recorded like any other."""
        try:
            await free(self.engine, env, seq)
        except Exception as error:
            self._failed(error, -1, (), 0)
