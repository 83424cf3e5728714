"""ALFWorld's two experts: the planner, which knows everything, and the handcoded one, which looks
for things. The handcoded one's searching steps are the natural places to branch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alfworld.agents.expert import HandCodedAgentFailed, HandCodedAgentTimeout, HandCodedTWAgent
from alfworld.agents.expert.handcoded_expert import BasePolicy

from spark.envs.alfworld.engine import Game, Position
from spark.envs.expert import Episode, ExpertStep
from spark.seeds import derive_seed

# the predicates that the stock policies look at
NOTICED = ("holds", "inreceptacle", "isclean", "ishot", "iscool")

HARMLESS = ("go to ", "open ", "close ")
"""What a detour may do: nothing that the expert cannot make good."""


class MoveIsPut:
    """Goes before a handcoded policy. The stock one listens for "put", but the engine's command
    has become "move ... to ...", so it never notices a delivery and fails where two are asked for.
    """

    def update_state_tracking(self, game_state: dict[str, Any], last_action: str) -> None:
        """Note what the last action did, as the stock policy does."""
        if last_action.startswith("move "):
            last_action = "put " + last_action.removeprefix("move ")
        # the mixin stands before a stock policy, which has it
        super().update_state_tracking(game_state, last_action)  # type: ignore[misc]


def handcoded(game: Game, *, max_steps: int, seed: int = 0, detours: float = 0.0) -> Episode:
    """Play with the handcoded expert, which sees only what a player sees.

    With probability `detours` a step is not its own, but goes, opens or closes at random.
    """
    policy = _policy(game, max_steps)
    position, text, last = game.start, game.intro, "look"
    episode = Episode(ending=text)
    policy.observe(text)
    with _seeded(derive_seed(seed, text)):
        while not position.won and len(episode.steps) < max_steps:
            action = _act(policy, game, position, text, last)
            if action is None:
                break
            if random.random() < detours:
                action = random.choice([c for c in position.admissible if c.startswith(HARMLESS)])
            explorative = action.startswith("go to ") and _searching(policy)
            episode.steps.append(
                ExpertStep(text, action, explorative, _subgoal(policy), position.admissible)
            )
            text, position = game.move(position, action)
            last = action
    episode.won, episode.ending = position.won, text
    return episode


def planned(game: Game, *, max_steps: int) -> Episode:
    """Play the planner's commands; it knows where everything is, so it never explores."""
    position, text = game.start, game.intro
    episode = Episode(ending=text)
    for action in game.plan(position)[:max_steps]:
        episode.steps.append(ExpertStep(text, action, False, "", position.admissible))
        text, position = game.move(position, action)
    episode.won, episode.ending = position.won, text
    return episode


def _policy(game: Game, max_steps: int) -> BasePolicy:
    params = {key: value.lower() for key, value in game.data.params.items()}
    params["task_type"] = game.data.task_type
    stock = HandCodedTWAgent().get_task_policy(params)
    return type("Policy", (MoveIsPut, stock), {})(params, max_steps=max_steps)


def _act(policy: BasePolicy, game: Game, position: Position, text: str, last: str) -> str | None:
    """Return the policy's next command, None when it gives up."""
    state = {
        "feedback": text,
        "facts": game.facts(position, NOTICED),
        "admissible_commands": list(position.admissible),
    }
    try:
        action = policy.act(state, last)
    except (HandCodedAgentFailed, HandCodedAgentTimeout):
        return None
    except IndexError:
        # it wants a thing that is within reach, but in another receptacle than it looks at
        action = last
    if action == last or action not in position.operators:
        # stuck; the stock expert takes any command at random here
        return random.choice([c for c in position.admissible if c.startswith("go to ")])
    return str(action)


def _searching(policy: BasePolicy) -> bool:
    """Return whether the policy is after something that it has not seen yet."""
    action, thing, _ = policy.get_next_subgoal()
    seen = thing in policy.obj_cls_to_receptacle_map or thing in policy.receptacles.values()
    return action == "find" and not seen


def _subgoal(policy: BasePolicy) -> str:
    action, thing, _ = policy.get_next_subgoal()
    return f"{action} {thing}".strip()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give the stock policy, which draws from the global generator, one of its own."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
