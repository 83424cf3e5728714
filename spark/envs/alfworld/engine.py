"""TextWorld's planning-language engine, with every state it has visited kept by its id.

libdownward numbers the states it meets; a number brings the state back. So one game serves any
number of trajectories, and a fork is a second reference to a `Position`. Numbers are lost when the
library is lent to another game, and found again by taking the same actions from the start.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cache

from alfworld.agents.utils.misc import Demangler
from textworld.envs.pddl import logic as pddl
from textworld.generator.game import EntityInfo
from textworld.logic import Placeholder, Proposition, Variable

from spark.envs.alfworld import memo
from spark.envs.alfworld.library import borrow
from spark.envs.alfworld.problem import GOAL_SLOT, GameData
from spark.envs.alfworld.state import Facts, Operator, State
from spark.envs.alfworld.translate import translate, translate_for_planning

NOTHING = "Nothing happens."
POSITIONS_KEPT = 4096


@dataclass(slots=True, eq=False)
class Position:
    """One state of one game and what is known about it."""

    parent: Position | None
    """Where it was first reached from, by `operator`; None for the start."""
    operator: Operator | None
    state_id: int
    loading: int
    """Count of the game's loading in which `state_id` is valid."""
    facts: Facts
    won: bool
    operators: dict[str, Operator]
    """Command -> the action it stands for."""
    admissible: tuple[str, ...]
    """Commands in sorted order."""
    moves: dict[str, tuple[str, Position]] = field(default_factory=dict)
    """Commands tried before -> (text, next position)."""


class Game:
    """One game: a graph of positions that grows as commands are tried. Not for several threads."""

    def __init__(self, data: GameData) -> None:
        memo.install()
        self.data = data
        problem = translate(data.domain, data.problem)
        self._logic = _logic(data.domain, data.grammar)
        self._library = borrow(self)
        self._state = State(self._library.calls, problem, self._logic)
        self._loadings = 0
        self._planner_ready = False
        self._entities = _entities(self._state.facts)
        self._names = {identity: entity.name for identity, entity in self._entities.items()}
        self._changing = frozenset(problem.changing)
        self._commands: dict[int, str] = {}
        self._found: dict[tuple[int, frozenset[Proposition]], Position] = {}
        self._made: list[Position] = []
        self.intro = self._derive("#intro#", {}).replace(GOAL_SLOT, data.goal)
        self.start = self._here(None, None)

    def move(self, position: Position, command: str) -> tuple[str, Position]:
        """Return (text, next position) of a command; one that does not apply changes nothing."""
        command = command.strip()
        if command in position.moves:
            return position.moves[command]
        operator = position.operators.get(command)
        if operator is None:
            return NOTHING, position
        self._go(position)
        self._state.apply(operator)
        text = self._derive(operator.feedback, operator.mapping)
        position.moves[command] = text, self._here(position, operator)
        return position.moves[command]

    def facts(self, position: Position, predicates: Collection[str]) -> list[Proposition]:
        """Return the facts of some predicates that hold, with the names the texts use."""
        return [
            Proposition(fact.name, [Variable(self._names[v.name], v.type) for v in fact.arguments])
            for signature, facts in position.facts.items()
            if signature.name in predicates
            for fact in facts
        ]

    def plan(self, position: Position) -> list[str]:
        """Return the planner's commands to the goal, [] when it finds none."""
        self._go(position)
        if not self._planner_ready:
            problem = translate_for_planning(self.data.domain, self.data.problem)
            self._library.calls.load_sas_replan(problem.encode())
            self._planner_ready = True
        return list(self._state.replan(self._entities))

    def _go(self, position: Position) -> None:
        """Bring the library to a position, whatever it held before."""
        if not self._library.lent_to(self):
            self._library = borrow(self)
            self._reload()
        elif len(self._made) >= POSITIONS_KEPT:
            self._forget()
            self._reload()
        if position.loading != self._loadings:
            self._find_again(position)
        self._state.go(position.state_id, position.facts)

    def _reload(self) -> None:
        """Load the game anew; numbers of states found before mean nothing from now on."""
        self._state.load(self._library.calls)
        self._loadings += 1
        self._planner_ready = False
        self._found.clear()
        self.start.state_id = self._library.calls.get_state_id()
        self.start.loading = self._loadings

    def _find_again(self, position: Position) -> None:
        """Take the actions that led to `position`, from the last position whose number is valid."""
        lost: list[Position] = []
        while position.loading != self._loadings:
            assert position.parent is not None
            lost.append(position)
            position = position.parent
        self._state.go(position.state_id, position.facts)
        for step in reversed(lost):
            assert step.operator is not None
            self._state.advance(step.operator)
            step.state_id = self._library.calls.get_state_id()
            step.loading = self._loadings

    def _forget(self) -> None:
        """Drop what can be worked out again; positions that a trajectory holds stay valid."""
        for position in self._made:
            position.moves.clear()
        self._made = [self.start]

    def _here(self, parent: Position | None, operator: Operator | None) -> Position:
        """Return the position of the current state, the same object for the same state."""
        state_id, facts = self._library.calls.get_state_id(), self._state.known
        # the library's state leaves out which facts were true once, but texts depend on them
        once = (group for signature, group in facts.items() if signature.name.startswith("not_"))
        key = (state_id, frozenset().union(*once))
        if key not in self._found:
            operators: dict[str, Operator] = {}
            for applicable in self._state.applicable():
                operators.setdefault(self._command(applicable), applicable)
            self._found[key] = Position(
                parent=parent,
                operator=operator,
                state_id=state_id,
                loading=self._loadings,
                facts=facts,
                won=bool(self._library.calls.check_goal()),
                operators=operators,
                admissible=tuple(sorted(operators)),
            )
            self._made.append(self._found[key])
        return self._found[key]

    def _command(self, operator: Operator) -> str:
        """Return the words for an action, remembered where they do not depend on the state."""
        command = self._commands.get(operator.id)
        if command is None:
            command = self._derive(operator.template, operator.mapping).format(**self._names)
            if not _predicates(operator.template) & self._changing:
                self._commands[operator.id] = command
        return command

    def _derive(self, rule: str, mapping: dict[Placeholder, Variable]) -> str:
        variables = {slot.name: self._entities[value.name] for slot, value in mapping.items()}
        context = {
            "state": self._state,
            "facts": (),
            "variables": variables,
            "mapping": mapping,
            "entity_infos": self._entities,
        }
        return str(self._logic.grammar.derive(rule, context))


@cache
def _logic(domain: str, grammar: str) -> pddl.GameLogic:
    """Return the parsed grammar; one serves all games that share it."""
    return pddl.GameLogic(domain=domain, grammar=grammar)


@cache
def _predicates(template: str) -> frozenset[str]:
    """Return the predicates that a command template asks about."""
    return frozenset(re.findall(r"(\w+)\(", template))


def _entities(facts: Iterable[Proposition]) -> dict[str, EntityInfo]:
    """Return entity id -> how texts speak of it, with ALFWorld's own numbering of objects."""
    entities = {v.name: EntityInfo(v.name, v.type) for fact in facts for v in fact.arguments}
    names = Demangler(game_infos=entities)
    for entity in entities.values():
        entity.name = names.demangle_alfred_name(entity.id)
        entity.definite, entity.indefinite = "the", "a"
    return entities
