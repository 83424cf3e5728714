"""WebShop's goals by split, and the environments that pursue them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from spark.envs.splits import check_split, drawn
from spark.envs.webshop.catalogue import read_catalogue
from spark.envs.webshop.options import TaskName, WebShopOptions
from spark.envs.webshop.synthetic import synthetic_catalogue
from spark.registry import load

try:
    from spark.envs.webshop.env import WebShopEnv
    from spark.envs.webshop.shop import Shop
except ImportError as error:
    raise ImportError(
        f"WebShop's search is not installed ({error}); run: pip install spark-branching[webshop]"
    ) from error

ENOUGH, TEST, DEVELOPMENT = 2000, 500, 1500


class WebShopSource:
    """Goals of one catalogue; its environments share the shop, which opens with the first task.

    Example:
        source = WebShopSource(WebShopOptions(data=Path("webshop/data")))
        text, info = source.make().reset(source.tasks("L1", 1)[0])
    """

    def __init__(self, options: WebShopOptions | None = None) -> None:
        """Raises ValueError when `data` is not a folder."""
        self.options = options or WebShopOptions()
        if self.options.data is not None and not self.options.data.is_dir():
            raise ValueError(f"data={str(self.options.data)!r} is no folder")

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[str]:
        """Return `count` goals of `split` in an order fixed by the seed, repeated if too few."""
        check_split(split)
        numbers = self._numbers(split)
        if not numbers:
            raise ValueError(f"held_out={self.options.held_out} leaves no goal for split {split}")
        digest = self.shop.catalogue.digest
        return [
            str(TaskName(split, number, digest)) for number in drawn(numbers, split, count, seed)
        ]

    def make(self) -> WebShopEnv:
        """Return a fresh environment, not yet reset."""
        return WebShopEnv(self.goal, lambda: self.shop, free_search=self.options.free_search)

    def goal(self, task: str) -> int:
        """Return the place of a task's goal. Raises ValueError when it is not one of ours."""
        name, catalogue = TaskName.parse(task), self.shop.catalogue
        if name.digest != catalogue.digest or name.number >= len(catalogue.goals):
            raise ValueError(
                f"task {task!r} belongs to another catalogue than this source's "
                f"(@{catalogue.digest}); build the source with the same data"
            )
        return name.number

    @cached_property
    def shop(self) -> Shop:
        """The catalogue with its search."""
        options = self.options
        folder = options.data or synthetic_catalogue(options.products)
        return Shop(read_catalogue(folder, human=options.human), load(options.nouns))

    def _numbers(self, split: str) -> list[int]:
        """Return the places of a split's goals."""
        goals, products = self.shop.catalogue.goals, self.shop.catalogue.products
        count = len(goals)
        test, development = TEST, DEVELOPMENT
        if count < ENOUGH:
            test, development = count // 4, count // 2
        first, last = {
            "train": (development, count),
            "L0": (test, development),
            "L1": (0, test),
            "L2": (0, test),
        }[split]
        return [
            number
            for number in range(first, last)
            if (products[goals[number].asin].category in self.options.held_out) == (split == "L2")
        ]

    def __getstate__(self) -> dict[str, Any]:
        # the shop stays behind: another process opens its own
        return {"options": self.options}
