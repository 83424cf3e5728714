"""TextWorld's state of a planning problem, made cheap to go back to."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import fast_downward
from textworld.envs.pddl import logic as pddl
from textworld.logic import Placeholder, Proposition, Signature, Type, Variable

from spark.envs.alfworld.translate import Problem

Facts = dict[Signature, frozenset[Proposition]]


@dataclass(slots=True, frozen=True)
class Operator:
    """An action of the planner library with everything put in its place."""

    id: int
    effects: int
    """Number of facts it changes at most."""
    mapping: dict[Placeholder, Variable]
    template: str
    feedback: str


class State(pddl.PddlState):
    """TextWorld's state of a planning problem, with facts that are never changed in place."""

    def __init__(self, library: Any, problem: Problem, logic: pddl.GameLogic) -> None:
        self.name2type = problem.entities
        self._logic = logic
        self._sas = problem.sas.encode()
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
        self.load(library)
        initial = [self._proposition(predicate, names) for predicate, *names in problem.facts]
        self._facts: Facts = _group(initial + self._library_facts())

    def load(self, library: Any) -> None:
        """Bring the problem into `library`, at its start."""
        self.downward_lib = library
        library.load_sas(self._sas)

    def applicable(self) -> list[Operator]:
        """Return the actions that can be taken now, each once, in the library's order."""
        buffer = (fast_downward.Operator * self.downward_lib.get_applicable_operators_count())()
        self.downward_lib.get_applicable_operators(buffer)
        return [self._operators.get(raw.id) or self._describe(raw) for raw in buffer]

    @property
    def known(self) -> Facts:
        """The facts that hold; never changed in place."""
        return self._facts

    def apply(self, operator: Operator) -> None:
        """Take an action, as `PddlState.apply` does."""
        facts = dict(self._facts)
        for effect in self.advance(operator):
            fact = effect.get_fact(self.name2type)
            opposite = fact.negate()
            facts[opposite.signature] = facts.get(opposite.signature, frozenset()) - {opposite}
            facts[fact.signature] = facts.get(fact.signature, frozenset()) | {fact}
        self._facts = facts

    def advance(self, operator: Operator) -> Any:
        """Take an action in the library alone and return the atoms it changed."""
        effects = (pddl.Atom * operator.effects)()
        self.downward_lib.apply_operator(operator.id, effects)
        return effects

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

    def _library_facts(self) -> list[Proposition]:
        atoms = (pddl.Atom * self.downward_lib.get_state_size())()
        self.downward_lib.get_state(atoms)
        facts = (atom.get_fact(self.name2type) for atom in atoms)
        return [fact for fact in facts if not fact.is_negation]

    def _proposition(self, predicate: str, names: list[str]) -> Proposition:
        return Proposition(predicate, [Variable(name, self.name2type[name]) for name in names])


def _group(facts: list[Proposition]) -> Facts:
    groups: dict[Signature, set[Proposition]] = {}
    for fact in facts:
        groups.setdefault(fact.signature, set()).add(fact)
    return {signature: frozenset(group) for signature, group in groups.items()}
