"""The constraint on actions: inside `<action>` only the admissible commands can be written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from spark.rollout.chat import (
    ACTION_CLOSE,
    ACTION_OPEN,
    Chat,
    command_of,
    same_but_for_spaces,
)

TRIES_KEPT = 256
"""States whose tries stay in memory; one of a thousand commands takes a megabyte or two."""

# token id -> what may follow; an empty dictionary ends a command
Trie = dict[int, Any]


class Opening:
    """Tells whether a decision has just written the opening tag."""

    def __init__(self, tag: str, decode: Callable[[Sequence[int]], str]) -> None:
        """`decode` gives the text of tokens, special ones included."""
        self.tag = tag
        self._decode = decode
        self._may_open: dict[int, bool] = {}

    def __call__(self, decision: Sequence[int]) -> bool:
        """Return True when the last token of `decision` completes the tag."""
        last = decision[-1]
        if last not in self._may_open:
            self._may_open[last] = self.tag[-1] in self._decode([last])
        return self._may_open[last] and self._decode(decision).rstrip().endswith(self.tag)


def make_trie(sequences: Iterable[Sequence[int]]) -> Trie:
    """Return the tree of `sequences`, each of which may be written; none begins another."""
    trie: Trie = {}
    for sequence in sequences:
        cursor = trie
        for token in sequence:
            cursor = cursor.setdefault(token, {})
    return trie


def paths(trie: Trie) -> Iterator[list[int]]:
    """Yield the sequences that `trie` was made of."""
    for token, below in trie.items():
        yield from ([token, *path] for path in paths(below)) if below else [[token]]


class ActionTrie:
    """Makes the constraint of a decision from the commands the environment admits.

    Commands are tokenised as they stand in a decision, between the tags, whole; the tokenizer must
    keep the opening tag's tokens as a prefix of that and give the command back when it decodes.
    """

    def __init__(self, chat: Chat, exclude: Sequence[str] = ()) -> None:
        """`exclude`: first words of commands to leave out, unless no other command remains."""
        self._chat = chat
        self._exclude = frozenset(exclude)
        self._opens = Opening(ACTION_OPEN, chat.decode)
        self._opening = tuple(chat.encode(ACTION_OPEN))
        self._continuations: dict[str, list[int]] = {}
        self._trie = lru_cache(TRIES_KEPT)(self._build)

    def constraint(self, commands: Sequence[str], before: Sequence[int] = ()) -> ActionConstraint:
        """Return the constraint for one decision that already has the tokens `before`.

        Commands that the tokenizer cannot write are left out, with a warning. Raises ValueError
        where it can write none.
        """
        return ActionConstraint(self._opens, self._trie(tuple(commands)), before)

    def _build(self, commands: tuple[str, ...]) -> Trie:
        kept = [c for c in commands if c.split()[:1] and c.split()[0] not in self._exclude]
        written = {command: self._continuation(command) for command in kept or commands}
        missing = [command for command, tokens in written.items() if not tokens]
        if len(missing) == len(written):
            raise ValueError(
                f"the tokenizer cannot write the command {missing[0]!r} between action tags, nor "
                "another; use constrain=False or a tokenizer that keeps the tags apart"
            )
        for command in missing:
            warnings.warn(
                f"the tokenizer cannot write {command!r}: the policy goes without such commands",
                stacklevel=2,
            )
        return make_trie(filter(None, written.values()))

    def _continuation(self, command: str) -> list[int]:
        """Return the tokens of `command` and the closing tag as they follow the opening tag.

        Nothing where they do not give it back: a word that the tokenizer does not know.
        """
        if command not in self._continuations:
            tokens = self._chat.encode(f"{ACTION_OPEN} {command} {ACTION_CLOSE}")
            cut = len(self._opening)
            whole = tuple(tokens[:cut]) == self._opening
            written = command_of(self._chat.decode(tokens)) or ""
            good = whole and same_but_for_spaces(written, command)
            self._continuations[command] = tokens[cut:] if good else []
        return self._continuations[command]


class ActionConstraint:
    """Walks the trie along one decision; `TokenConstraint` of the engine protocol."""

    def __init__(self, opens: Opening, trie: Trie, before: Sequence[int] = ()) -> None:
        """`before`: tokens of the decision that were sampled by an earlier call."""
        self._opens = opens
        self._trie = trie
        self._before = list(before)
        self._seen = 0
        self._cursor: Trie | None = None
        self._walk(self._before)

    def allowed(self, generated: Sequence[int]) -> Sequence[int] | None:
        """Return the ids that may follow; None outside of an action and after its end."""
        self._walk([*self._before, *generated])
        return list(self._cursor) if self._cursor else None

    def wire(self) -> dict[str, Any]:
        """Return the constraint as JSON, for an engine in another process (docs/serving.md)."""
        choices = list(paths(self._trie))
        return {"opening": self._opens.tag, "choices": choices, "before": self._before}

    def _walk(self, decision: list[int]) -> None:
        for end in range(self._seen + 1, len(decision) + 1):
            if self._cursor is None:
                self._cursor = self._trie if self._opens(decision[:end]) else None
            else:
                self._cursor = self._cursor.get(decision[end - 1], {})
        self._seen = len(decision)
