"""TextWorld's planning-language engine, with every state it has visited kept by its id.

libdownward numbers the states it meets; a number brings the state back. So one loaded game serves
any number of trajectories, and a fork is a second reference to a `Position`.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import fast_downward
from alfworld.agents.utils.misc import Demangler
from textworld.envs.pddl import logic as pddl
from textworld.generator.game import EntityInfo
from textworld.logic import Placeholder, Proposition, Signature, Type, Variable

from spark.envs.alfworld import memo
from spark.envs.alfworld.problem import GOAL_SLOT, GameData
from spark.envs.alfworld.translate import Problem, translate, translate_for_planning

Facts = dict[Signature, frozenset[Proposition]]
NOTHING = "Nothing happens."
POSITIONS_KEPT = 4096


@dataclass(slots=True, frozen=True)
class Operator:
    """An action of the planner library with everything put in its place."""

    id: int
    effects: int
    """Number of facts it changes at most."""
    mapping: dict[Placeholder, Variable]
    template: str
    feedback: str


@dataclass(slots=True, eq=False)
class Position:
    """One state of one loaded game and what is known about it."""

    state_id: int
    facts: Facts
    won: bool
    operators: dict[str, Operator]
    """Command -> the action it stands for."""
    admissible: tuple[str, ...]
    """Commands in sorted order."""
    moves: dict[str, tuple[str, Position]] = field(default_factory=dict)
    """Commands tried before -> (text, next position)."""


class State(pddl.PddlState):
    """TextWorld's state of a planning problem, with facts that are never changed in place."""

    def __init__(self, library: Any, problem: Problem, logic: pddl.GameLogic) -> None:
        self.downward_lib = library
        self.name2type = problem.entities
        self._logic = logic
        self._operators: dict[int, Operator] = {}
        # the planner's plans are put into words through these
        self._actions = {
            action: SimpleNamespace(
                parameters=[SimpleNamespace(name=name, type_name=kind) for name, kind in parameters]
            )
            for action, parameters in problem.parameters.items()
        }
        for name, supertypes in problem.types:
            if name not in {known.name for known in logic.types}:
                logic.types.add(Type(name, supertypes))
        library.load_sas(problem.sas.encode())
        self._facts: Facts = _group(
            [
                *(self._proposition(predicate, names) for predicate, *names in problem.facts),
                *self._library_facts(),
            ]
        )

    def applicable(self) -> list[Operator]:
        """Return the actions that can be taken now, each once, in the library's order."""
        buffer = (fast_downward.Operator * self.downward_lib.get_applicable_operators_count())()
        self.downward_lib.get_applicable_operators(buffer)
        return [self._operators.get(raw.id) or self._describe(raw) for raw in buffer]

    def apply(self, operator: Operator) -> None:
        """Take an action, as `PddlState.apply` does."""
        effects = (pddl.Atom * operator.effects)()
        self.downward_lib.apply_operator(operator.id, effects)
        facts = dict(self._facts)
        for effect in effects:
            fact = effect.get_fact(self.name2type)
            opposite = fact.negate()
            facts[opposite.signature] = facts.get(opposite.signature, frozenset()) - {opposite}
            facts[fact.signature] = facts.get(fact.signature, frozenset()) | {fact}
        self._facts = facts

    def position(self) -> tuple[int, Facts]:
        """Return what brings this state back."""
        return self.downward_lib.get_state_id(), self._facts

    def go(self, state_id: int, facts: Facts) -> None:
        """Bring a state back."""
        self.downward_lib.set_state_id(state_id)
        self._facts = facts

    def _describe(self, raw: fast_downward.Operator) -> Operator:
        name, *arguments = raw.name.split()
        action = self._logic.actions[name]
        parameters = self._actions[name].parameters
        mapping = {
            Placeholder(parameter.name.strip("?"), parameter.type_name): Variable(
                argument, parameter.type_name
            )
            for parameter, argument in zip(parameters, arguments, strict=False)
        }
        made = Operator(raw.id, raw.nb_effect_atoms, mapping, action.template, action.feedback_rule)
        return self._operators.setdefault(raw.id, made)

    def _library_facts(self) -> Iterable[Proposition]:
        atoms = (pddl.Atom * self.downward_lib.get_state_size())()
        self.downward_lib.get_state(atoms)
        facts = (atom.get_fact(self.name2type) for atom in atoms)
        return [fact for fact in facts if not fact.is_negation]

    def _proposition(self, predicate: str, names: list[str]) -> Proposition:
        return Proposition(predicate, [Variable(name, self.name2type[name]) for name in names])


class Game:
    """One loaded game: an immutable graph of positions that grows as commands are tried."""

    def __init__(self, data: GameData) -> None:
        self.data = data
        self._library = _idle_libraries.pop() if _idle_libraries else _load_library()
        weakref.finalize(self, _idle_libraries.append, self._library).atexit = False
        problem = translate(data.domain, data.problem)
        self._logic = _logic(data.domain, data.grammar)
        self._state = State(self._library, problem, self._logic)
        self._entities = _entities(self._state.facts)
        self._names = {identity: entity.name for identity, entity in self._entities.items()}
        self._changing = frozenset(problem.changing)
        self._commands: dict[int, str] = {}
        self._positions: dict[tuple[int, frozenset[Proposition]], Position] = {}
        self._planner_ready = False
        self.intro = self._derive("#intro#", {}).replace(GOAL_SLOT, data.goal)
        self.start = self._here()

    def move(self, position: Position, command: str) -> tuple[str, Position]:
        """Return (text, next position) of a command; one that does not apply changes nothing."""
        command = command.strip()
        known = position.moves.get(command)
        if known is None:
            known = position.moves[command] = self._try(position, command)
        return known

    def facts(self, position: Position) -> list[Proposition]:
        """Return the facts that hold, with the names the texts use."""
        return [
            Proposition(fact.name, [Variable(self._names[v.name], v.type) for v in fact.arguments])
            for facts in position.facts.values()
            for fact in facts
        ]

    def plan(self, position: Position) -> list[str]:
        """Return the planner's commands to the goal, [] when it finds none."""
        if not self._planner_ready:
            problem = translate_for_planning(self.data.domain, self.data.problem)
            self._library.load_sas_replan(problem.encode())
            self._planner_ready = True
        self._state.go(position.state_id, position.facts)
        return list(self._state.replan(self._entities))

    def _try(self, position: Position, command: str) -> tuple[str, Position]:
        operator = position.operators.get(command)
        if operator is None:
            return NOTHING, position
        self._state.go(position.state_id, position.facts)
        self._state.apply(operator)
        return self._derive(operator.feedback, operator.mapping), self._here()

    def _here(self) -> Position:
        """Return the position of the current state, the same object for the same state."""
        state_id, facts = self._state.position()
        # the library's state leaves out which facts were true once, but texts depend on them
        once = (f for signature, f in facts.items() if signature.name.startswith("not_"))
        key = (state_id, frozenset().union(*once))
        position = self._positions.get(key)
        if position is None:
            if len(self._positions) >= POSITIONS_KEPT:
                self._forget()
            position = self._positions[key] = self._examine(state_id, facts)
        return position

    def _examine(self, state_id: int, facts: Facts) -> Position:
        operators: dict[str, Operator] = {}
        for operator in self._state.applicable():
            operators.setdefault(self._command(operator), operator)
        won = bool(self._library.check_goal())
        return Position(state_id, facts, won, operators, tuple(sorted(operators)))

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

    def _forget(self) -> None:
        """Drop what can be worked out again; positions still held by a trajectory stay valid."""
        for position in self._positions.values():
            position.moves.clear()
        self._positions.clear()


# one library instance holds one game; instances are handed on because they cannot be unloaded
_idle_libraries: list[Any] = []


def _load_library() -> Any:
    memo.install()
    return fast_downward.load_lib()


@cache
def _logic(domain: str, grammar: str) -> pddl.GameLogic:
    """Return the parsed grammar; one serves all games that share it."""
    return pddl.GameLogic(domain=domain, grammar=grammar)


@cache
def _predicates(template: str) -> frozenset[str]:
    """Return the predicates that a command template asks about."""
    return frozenset(re.findall(r"(\w+)\(", template))


def _group(facts: list[Proposition]) -> Facts:
    groups: dict[Signature, set[Proposition]] = {}
    for fact in facts:
        groups.setdefault(fact.signature, set()).add(fact)
    return {signature: frozenset(group) for signature, group in groups.items()}


def _entities(facts: Iterable[Proposition]) -> dict[str, EntityInfo]:
    """Return entity id -> how texts speak of it, with ALFWorld's own numbering of objects."""
    entities = {v.name: EntityInfo(v.name, v.type) for fact in facts for v in fact.arguments}
    names = Demangler(game_infos=entities)
    for entity in entities.values():
        entity.name = names.demangle_alfred_name(entity.id)
        entity.definite, entity.indefinite = "the", "a"
    return entities
