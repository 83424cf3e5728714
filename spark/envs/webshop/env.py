"""One trajectory in the shop."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from spark.envs.base import Determinism, ForkKind
from spark.envs.webshop.pages import (
    BACK,
    BUY,
    NEXT,
    PARTS,
    PREVIOUS,
    State,
    clickables,
    on_page,
    text_of,
)
from spark.envs.webshop.reward import content_words
from spark.envs.webshop.shop import Shop

ACTION = re.compile(r"(search|click)\[(.+)\]")
NOTHING = "Nothing happens."


class WebShopEnv:
    """A place in the shop: a small tuple, so a fork is another reference to it.

    Commands are `search[words]` and `click[what the page shows]`. The reward comes with the
    purchase, in [0, 1]; 1 counts as won. Nothing is ever truncated.
    """

    fork_kind: ForkKind = "state"
    determinism: Determinism = "exact"

    def __init__(
        self, find: Callable[[str], int], shop: Callable[[], Shop], *, free_search: bool = True
    ) -> None:
        """`find` turns a task's name into the place of its goal; `shop` opens the shop."""
        self._find, self._open, self._free_search = find, shop, free_search
        self._at: State | None = None

    def reset(self, task: str, seed: int = 0) -> tuple[str, dict[str, Any]]:
        """Start `task`; the seed changes nothing, the name fixes the goal."""
        self._at = State(goal=self._find(task))
        shop = self._open()
        instruction = shop.catalogue.goals[self._at.goal].instruction
        return f"WebShop [SEP] Instruction: {instruction} [SEP] Search", self._info(self._at)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Act; what is no command of the page is answered with "Nothing happens."."""
        before = self.snapshot()
        state = self._after(before, action)
        self._at = state or before
        text = NOTHING if state is None else text_of(self._open(), state)
        over = self._at.page == "done"
        return text, self._at.reward, over, False, self._info(self._at)

    def snapshot(self) -> State:
        """Return the current state, valid for every environment of this source."""
        if self._at is None:
            raise ValueError("the environment was not reset yet; call reset(task) first")
        return self._at

    def restore(self, snapshot: State) -> None:
        """Go back to `snapshot`."""
        self._at = snapshot

    def fork(self) -> WebShopEnv:
        """Return a second environment in the same state."""
        child = WebShopEnv(self._find, self._open, free_search=self._free_search)
        child._at = self._at
        return child

    def close(self) -> None:
        """Leave the shop."""
        self._at = None

    def _after(self, at: State, action: str) -> State | None:
        """Return the state that an action leads to, None where it means nothing."""
        match = ACTION.fullmatch(action.strip())
        if match is None or at.page == "done":
            return None
        verb, what = match[1], match[2].strip().lower()
        if verb == "search":
            return State(goal=at.goal, page="results", words=what)
        shop = self._open()
        return self._clicked(shop, at, what) if what in clickables(shop, at) else None

    def _clicked(self, shop: Shop, at: State, what: str) -> State:
        if what == BACK:
            return State(goal=at.goal)
        if at.page == "results":
            return self._clicked_result(shop, at, what)
        if what == PREVIOUS:
            return at._replace(page="results" if at.page == "item" else "item")
        if what in PARTS:
            return at._replace(page=what)
        if what == BUY:
            goal = shop.catalogue.goals[at.goal]
            chosen = [value for _, value in at.chosen]
            return at._replace(page="done", reward=shop.rate(goal, at.asin, chosen))
        options = shop.product(at.asin).options
        option = next(name for name, values in options.items() if what in values)
        return at._replace(chosen=tuple((dict(at.chosen) | {option: what}).items()))

    def _clicked_result(self, shop: Shop, at: State, what: str) -> State:
        if what in (NEXT, PREVIOUS):
            return at._replace(number=at.number + (1 if what == NEXT else -1))
        asin = next(asin for asin in on_page(shop, at) if asin.lower() == what)
        return at._replace(page="item", asin=asin, chosen=())

    def _info(self, at: State) -> dict[str, Any]:
        won = at.page == "done" and at.reward == 1.0
        if at.page != "search":
            clicks = [f"click[{what}]" for what in clickables(self._open(), at)]
            return {"admissible": clicks, "won": won}
        searches = self._searches(at)
        if self._free_search:
            return {"admissible": None, "examples": searches, "won": won}
        return {"admissible": searches, "won": won}

    def _searches(self, at: State) -> list[str]:
        """Return two searches made from the instruction: all of it, and what it asks for."""
        said = self._open().catalogue.goals[at.goal].instruction.partition(", and price")[0]
        words = re.findall(r"[\w-]+", said.lower())
        kept = [word for word in words if content_words(word)]
        return [f"search[{' '.join(words)}]", f"search[{' '.join(kept)}]"]
