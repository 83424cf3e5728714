"""Constraints that came over HTTP, as those of `spark.rollout`."""

from __future__ import annotations

from collections.abc import Sequence

from spark.rollout.constraint import ActionConstraint, Opening, Trie, make_trie
from spark.serve.backend import Backend
from spark.serve.plan import Constrain
from spark.serve.protocol import Constraint, RequestError


class Constraints:
    """Makes a request's constraints; what is known about tags is shared by all requests."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._openings: dict[str, Opening] = {}

    def make(self, wire: Constraint | None) -> Constrain | None:
        """Return the maker of the leaves' constraints. Raises RequestError for unknown tokens."""
        if wire is None:
            return None
        size = self._backend.vocab_size
        if wire.before and max(wire.before) >= size:
            raise RequestError(
                f"branching.constraint.before must have token ids in [0, {size})",
                param="branching.constraint.before",
            )
        for at, choice in enumerate(wire.choices):
            if not choice or max(choice) >= size:
                raise RequestError(
                    f"branching.constraint.choices.{at} must have token ids in [0, {size})",
                    param=f"branching.constraint.choices.{at}",
                )
        if len(self._openings) > 64:
            # clients choose the tags
            self._openings.clear()
        opens = self._openings.setdefault(wire.opening, Opening(wire.opening, self._decode))
        trie = make_trie(wire.choices)
        for at, choice in enumerate(wire.choices):
            if follows(trie, choice):
                raise RequestError(
                    f"branching.constraint.choices.{at} begins another choice and could never end: "
                    "add the tokens that end it",
                    param=f"branching.constraint.choices.{at}",
                )
        return lambda output: ActionConstraint(opens, trie, [*wire.before, *output])

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(
            self._backend.tokenizer.decode(
                list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )


def follows(trie: Trie, choice: Sequence[int]) -> bool:
    """Return whether something follows the end of `choice`."""
    for token in choice:
        trie = trie[token]
    return bool(trie)
