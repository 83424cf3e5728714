"""Which WebShop instructions are followed, and how they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spark.envs.splits import SPLITS


@dataclass(kw_only=True, slots=True, frozen=True)
class WebShopOptions:
    """The shop and the instructions.

    Splits, by place among the shuffled goals as in the official code: "L1" the first 500 (its test
    set), "L0" the next 1,000 (its development set), "train" the rest, all without the categories
    held out; "L2" the goals among the first 500 that ask for these. With fewer than 2,000 goals,
    L1 and L0 are the first two quarters.

    Example:
        WebShopOptions(data=Path("webshop/data"), held_out=())
    """

    data: Path | None = None
    """Folder of the official files: items_shuffle*.json, items_ins_v2*.json, items_human_ins.json;
    None = a synthetic catalogue of the same schema, whose scores compare with nothing."""
    human: bool = True
    """Instructions that people wrote, where the folder has them; else those made from attributes
    and options."""
    held_out: tuple[str, ...] = ("garden",)
    """Categories of L2 only; () = none, and L2 is empty."""
    free_search: bool = True
    """Let the policy search for any words; else the search page admits two searches, made from the
    instruction."""
    nouns: str = "spark.envs.webshop.reward:content_words"
    """module:function that returns the set of nouns in a product's name, lower case. The official
    reward asks spaCy's en_core_web_lg; the default takes every word that is no stop word."""
    products: int = 240
    """Products of the synthetic catalogue."""

    def __post_init__(self) -> None:
        if self.products < 40:
            raise ValueError(f"products={self.products} is too small; at least 40 are needed")


class TaskName(NamedTuple):
    """A goal of a catalogue, e.g. `train/17@3c7d9a21`: its place, and a digest of the files."""

    split: str
    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.split}/{self.number}@{self.digest}"

    @classmethod
    def parse(cls, text: str) -> TaskName:
        """Read a name back. Raises ValueError when it is none."""
        path, _, digest = text.partition("@")
        split, _, number = path.partition("/")
        if split not in SPLITS or not number.isdecimal() or not digest:
            raise ValueError(f"task {text!r} is none of WebShop; expected e.g. train/17@3c7d9a21")
        return cls(split, int(number), digest)
