"""Products and goals, read from files in the official schema."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from itertools import product as combinations
from pathlib import Path
from random import Random
from typing import Any

REMEDY = "give the folder that WebShop's setup.sh fills (items_shuffle*.json, items_ins_v2*.json)"
UNKNOWN_PRICE = 100.0
SHUFFLE_SEED = 233
"""Of the official code, so that a goal's place is the official one."""


@dataclass(kw_only=True, slots=True)
class Product:
    """What the shop knows of one thing it sells."""

    asin: str
    name: str
    category: str
    query: str
    product_category: str
    """Path of categories, separated by "›"."""
    description: str
    features: list[str]
    attributes: list[str]
    price: float
    price_text: str
    options: dict[str, list[str]] = field(default_factory=dict)
    """Option -> its values, all lower case."""


@dataclass(kw_only=True, slots=True)
class Goal:
    """What an instruction asks for."""

    asin: str
    instruction: str
    attributes: list[str]
    options: list[str]
    price_upper: float


@dataclass(kw_only=True, slots=True)
class Catalogue:
    """The shop's products by asin, and the goals in their official order."""

    products: dict[str, Product]
    goals: list[Goal]
    digest: str
    """Eight characters that differ between different files."""


def read_catalogue(folder: Path, *, human: bool = True) -> Catalogue:
    """Return what the official files in `folder` hold. Raises ValueError when they are missing."""
    items, attributes = _find(folder, "items_shuffle*.json"), _find(folder, "items_ins_v2*.json")
    written = folder / "items_human_ins.json"
    files = [items, attributes, *([written] if human and written.is_file() else [])]
    loaded = [json.loads(file.read_text()) for file in files]
    products: dict[str, Product] = {}
    for raw in loaded[0]:
        asin = raw["asin"]
        if asin != "nan" and len(asin) <= 10 and asin not in products:
            products[asin] = _product(raw, loaded[1].get(asin, {}))
    made = _human(products, loaded[2]) if len(loaded) == 3 else _synthetic(products, loaded[1])
    if not made:
        raise ValueError(f"data={str(folder)!r} holds no instruction for its products; {REMEDY}")
    Random(SHUFFLE_SEED).shuffle(made)
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files))
    return Catalogue(products=products, goals=made, digest=digest.hexdigest()[:8])


def _find(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_size)
    if not found:
        raise ValueError(f"data={str(folder)!r} has no {pattern}; {REMEDY}")
    return found[-1]


def _product(raw: dict[str, Any], told: dict[str, Any]) -> Product:
    prices = [float(re.sub(r"[^\d.]", "", part)) for part in (raw["pricing"] or "").split("$")[1:]]
    prices = prices[:2] or [UNKNOWN_PRICE]
    features = raw["small_description"]
    options = {
        option.lower(): [_option(content["value"]) for content in contents]
        for option, contents in (raw["customization_options"] or {}).items()
        if contents
    }
    return Product(
        asin=raw["asin"],
        name=raw["name"],
        category=raw["category"],
        query=raw["query"].lower().strip(),
        product_category=raw["product_category"],
        description=raw["full_description"] or "",
        features=features if isinstance(features, list) else [features or ""],
        attributes=told.get("attributes", []),
        # of a range the official code draws one price at random; here it is always the same one
        price=Random(raw["asin"]).uniform(prices[0], prices[-1]),
        price_text=" to ".join(f"${price}" for price in prices),
        options=options,
    )


def _option(value: str) -> str:
    return value.strip().replace("/", " | ").lower()


def _human(products: dict[str, Product], told: dict[str, Any]) -> list[Goal]:
    """Return the goals of instructions that people wrote."""
    return [
        _goal(each, one["instruction"].strip("."), one["instruction_attributes"], options)
        for each in products.values()
        for one in told.get(each.asin, [])
        if one["instruction_attributes"]
        for options in [_values(one["instruction_options"])]
    ]


def _synthetic(products: dict[str, Product], told: dict[str, Any]) -> list[Goal]:
    """Return a goal for every product with an instruction and every choice of its options."""
    goals = []
    for each in products.values():
        one = told.get(each.asin, {})
        if not one.get("instruction"):
            continue
        names = sorted(each.options)
        for chosen in combinations(*(each.options[name] for name in names)):
            pairs = ", and ".join(f"{k}: {v}" for k, v in zip(names, chosen, strict=True))
            text = one["instruction"] + (f" with {pairs}" if pairs else "")
            goals.append(_goal(each, text, one["instruction_attributes"], list(chosen)))
    return goals


def _values(options: dict[str, str] | list[str]) -> list[str]:
    return list(options.values()) if isinstance(options, dict) else list(options)


def _goal(product: Product, text: str, attributes: list[str], options: list[str]) -> Goal:
    """Return a goal with an upper price: one of the next four tens, not the lowest of them."""
    tens = [10.0 * i for i in range(1, 100) if 10.0 * i > product.price][:4]
    upper = 1e6
    if len(tens) >= 2:
        upper = max(Random(product.asin + text).sample(tens, 2))
        text += f", and price lower than {upper:.2f} dollars"
    return Goal(
        asin=product.asin,
        instruction=text,
        attributes=attributes,
        options=options,
        price_upper=upper,
    )
