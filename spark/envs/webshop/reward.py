"""What a purchase is worth: WebShop's formula (arXiv 2207.01206, section 3 and appendix)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from rapidfuzz import fuzz, utils

from spark.envs.webshop.catalogue import Goal, Product

SAME = 85
"""Two wordings above this token-set ratio, in percent, are the same."""
COLORS = (
    *("black", "white", "grey", "gray", "silver", "gold", "red", "pink", "orange", "yellow"),
    *("green", "blue", "navy", "teal", "turquoise", "purple", "violet", "brown", "beige"),
    *("ivory", "khaki", "maroon", "rose", "tan", "cream", "multicolor"),
)
STOP_WORDS = {
    *("a", "an", "and", "are", "as", "at", "be", "by", "find", "for", "from", "i", "in", "into"),
    *("is", "it", "its", "looking", "me", "need", "of", "on", "or", "per", "that", "the", "this"),
    *("to", "up", "want", "with", "would", "you", "your"),
}


def content_words(name: str) -> set[str]:
    """Return the words of a name that are no stop words."""
    return set(re.findall(r"[a-z]{2,}", name.lower())) - STOP_WORDS


def reward(
    bought: Product,
    wanted: Product,
    goal: Goal,
    chosen: Collection[str],
    nouns: Callable[[str], set[str]] = content_words,
) -> float:
    """Return the reward in [0, 1] of buying `bought` with the option values `chosen`.

    (attributes met + options met + price met) / (attributes + options + 1), times a factor for the
    kind of thing.
    """
    met = sum(_has(bought, attribute) for attribute in goal.attributes)
    met += sum(_same_option(option, chosen) for option in goal.options)
    met += bought.price <= goal.price_upper
    asked = len(goal.attributes) + len(goal.options) + 1
    return type_factor(bought, wanted, nouns) * met / asked


def type_factor(bought: Product, wanted: Product, nouns: Callable[[str], set[str]]) -> float:
    """Return 1 for the kind of thing that was wanted, down to 0 for something else entirely."""
    names = nouns(wanted.name)
    overlap = len(nouns(bought.name) & names) / len(names) if names else 0.2
    if overlap == 0.0:
        return 0.0
    if overlap < 0.1:
        return 0.1
    shared = _categories(bought) & _categories(wanted)
    alike = bought.query == wanted.query or len(shared) >= 2 or overlap > 0.2
    return 1.0 if alike else 0.5


def _categories(product: Product) -> set[str]:
    return {part.strip() for part in product.product_category.split("›")}


def _has(product: Product, attribute: str) -> bool:
    """Return whether a product has an attribute by its list, or says so in its texts."""
    if any(_same(own, attribute) for own in product.attributes):
        return True
    texts = (product.name, " ".join(product.features), product.description)
    return any(attribute in text.lower() for text in texts)


def _same_option(option: str, chosen: Collection[str]) -> bool:
    return any(_same(_color(own), _color(option)) for own in chosen)


def _same(one: str, other: str) -> bool:
    return fuzz.token_set_ratio(one, other, processor=utils.default_process) > SAME


def _color(option: str) -> str:
    """Return the first colour of our list that an option names, or the option itself."""
    return next((color for color in COLORS if color in option), option)
