"""The shop itself: a catalogue with its search, shared by all trajectories."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import bm25s
import numpy as np

from spark.envs.webshop.catalogue import Catalogue, Goal, Product
from spark.envs.webshop.reward import content_words, reward

FOUND = 50
"""Products a search finds at most."""


class Shop:
    """Searches (BM25 over all texts of a product) and rates purchases."""

    def __init__(
        self, catalogue: Catalogue, nouns: Callable[[str], set[str]] = content_words
    ) -> None:
        """`nouns`: name -> the nouns in it, for the reward."""
        self.catalogue, self._nouns = catalogue, nouns
        self._asins = list(catalogue.products)
        self._index = bm25s.BM25(method="lucene", k1=0.9, b=0.4)
        texts = [_text(product) for product in catalogue.products.values()]
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
        self.search = lru_cache(4096)(self._search)

    def product(self, asin: str) -> Product:
        """Return a product."""
        return self.catalogue.products[asin]

    def rate(self, goal: Goal, asin: str, chosen: list[str]) -> float:
        """Return the reward of buying a product with some option values."""
        return reward(self.product(asin), self.product(goal.asin), goal, chosen, self._nouns)

    def _search(self, words: str) -> tuple[str, ...]:
        """Return the asins that match, the best first; ties in the order of the catalogue."""
        (query,) = bm25s.tokenize([words], return_ids=False, show_progress=False)
        scores = self._index.get_scores(query)
        order = np.argsort(-scores, kind="stable")[:FOUND]
        return tuple(self._asins[index] for index in order if scores[index] > 0)


def _text(product: Product) -> str:
    options = [value for values in product.options.values() for value in values]
    parts = [product.name, product.description, *product.features, *product.attributes, *options]
    return " ".join(parts)
