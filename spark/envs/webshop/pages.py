"""The pages of the shop as text, and what can be clicked on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from spark.envs.webshop.catalogue import Product
from spark.envs.webshop.shop import Shop

Kind = Literal["search", "results", "item", "description", "features", "reviews", "done"]
WINDOW = 10
"""Products on a page of results."""
BACK, NEXT, PREVIOUS, BUY = "back to search", "next >", "< prev", "buy now"
PARTS: tuple[Kind, ...] = ("description", "features", "reviews")
SEPARATOR = " [SEP] "


class State(NamedTuple):
    """Where a trajectory is; a fork is a copy of this."""

    goal: int
    """Place of the goal in the catalogue."""
    page: Kind = "search"
    words: str = ""
    """What was searched for."""
    number: int = 1
    """Page of the results."""
    asin: str = ""
    chosen: tuple[tuple[str, str], ...] = ()
    """(option, value), in the order of choice."""
    reward: float = 0.0
    """Of the purchase."""


def on_page(shop: Shop, state: State) -> tuple[str, ...]:
    """Return the products on the current page of results."""
    found = shop.search(state.words)
    return found[(state.number - 1) * WINDOW : state.number * WINDOW]


def clickables(shop: Shop, state: State) -> list[str]:
    """Return what can be clicked, lower case."""
    if state.page == "results":
        more = state.number * WINDOW < len(shop.search(state.words))
        turns = [PREVIOUS] * (state.number > 1) + [NEXT] * more
        return [BACK, *turns, *(asin.lower() for asin in on_page(shop, state))]
    if state.page == "item":
        values = [v for values in shop.product(state.asin).options.values() for v in values]
        return list(dict.fromkeys([BACK, PREVIOUS, *values, *PARTS, BUY]))
    return [BACK, PREVIOUS] if state.page in PARTS else []


def text_of(shop: Shop, state: State) -> str:
    """Return the page as the official environment's plain mode has it, without the instruction."""
    if state.page == "search":
        return "Search"
    if state.page == "done":
        return SEPARATOR.join(["Thank you for shopping with us!", f"Your score: {state.reward:g}"])
    if state.page == "results":
        return SEPARATOR.join(_results(shop, state))
    product = shop.product(state.asin)
    head = ["Back to Search", "< Prev"]
    if state.page == "item":
        return SEPARATOR.join([*head, *_item(product, dict(state.chosen))])
    said = {"description": [product.description], "features": product.features}
    return SEPARATOR.join([*head, *said.get(state.page, ["No reviews."])])


def _results(shop: Shop, state: State) -> list[str]:
    total = len(shop.search(state.words))
    turns = [button for button in (PREVIOUS, NEXT) if button in clickables(shop, state)]
    lines = ["Back to Search", f"Page {state.number} (Total results: {total})"]
    lines += [button.capitalize() for button in turns]
    for asin in on_page(shop, state):
        lines += [asin, shop.product(asin).name, shop.product(asin).price_text]
    return lines


def _item(product: Product, chosen: dict[str, str]) -> Sequence[str]:
    """Return the lines of a product's page; a chosen value is marked."""
    lines = []
    for option, values in product.options.items():
        marked = [f"{v} (chosen)" if chosen.get(option) == v else v for v in values]
        lines += [option, *marked]
    price = f"Price: {product.price_text}"
    return [*lines, product.name, price, *(part.title() for part in PARTS), "Buy Now"]
