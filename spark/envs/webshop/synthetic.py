"""A synthetic catalogue in WebShop's schema, for tests and first steps; no such product exists."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from spark.envs.cache import cache_dir, write_atomic

FORMAT = "1"
KINDS = {
    "fashion": ["shirt", "jacket", "sneakers", "scarf"],
    "electronics": ["headphones", "charger", "speaker", "keyboard"],
    "beauty": ["shampoo", "lotion", "lipstick", "perfume"],
    "grocery": ["coffee", "tea", "cookies", "honey"],
    "garden": ["lamp", "chair", "planter", "rug"],
}
TRAITS = {
    "fashion": ["machine wash", "long sleeve", "slim fit", "water resistant"],
    "electronics": ["fast charging", "noise cancelling", "easy to carry", "long lasting"],
    "beauty": ["cruelty free", "paraben free", "sensitive skin", "natural ingredients"],
    "grocery": ["gluten free", "sugar free", "non gmo", "individually wrapped"],
    "garden": ["easy assembly", "space saving", "solid wood", "spot clean"],
}
COLORS = ("red", "blue", "green", "black", "white")
SIZES = ("small", "medium", "large")
BRANDS = ("Synthetica", "Madeupp", "Noreal", "Fictica")


def synthetic_catalogue(products: int, seed: int = 0) -> Path:
    """Return a folder with `products` made-up products in the official schema, kept on disk."""
    folder = cache_dir() / "webshop-synthetic" / f"{FORMAT}-{products}-{seed}"
    rng = Random(seed)
    made = [_item(rng, number) for number in range(products)]
    files: dict[str, Any] = {
        "items_shuffle_synthetic.json": [item for item, _ in made],
        "items_ins_v2_synthetic.json": {item["asin"]: told for item, told in made},
    }
    for name, content in files.items():
        if not (folder / name).exists():
            write_atomic(folder / name, json.dumps(content).encode())
    return folder


def _item(rng: Random, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a product and what is told of its attributes."""
    category = rng.choice(sorted(KINDS))
    kind = rng.choice(KINDS[category])
    traits = rng.sample(TRAITS[category], 2)
    low = rng.randint(8, 60) + 0.99
    name = f"{rng.choice(BRANDS)} {' '.join(traits)} {kind}, model {number}"
    options: dict[str, list[dict[str, Any]]] = {
        "Color": [{"value": color, "image": None} for color in rng.sample(COLORS, 2)]
    }
    if category == "fashion":
        options["Size"] = [{"value": size, "image": None} for size in rng.sample(SIZES, 2)]
    item = {
        "asin": f"S{number:08d}",
        "name": name,
        "category": category,
        "query": kind,
        "product_category": f"{category.title()} › {kind.title()}",
        "full_description": f"This {kind} was made up by a program. It is {' and '.join(traits)}.",
        "small_description": [f"{trait} {kind}" for trait in traits],
        "pricing": f"${low}" if rng.random() < 0.8 else f"${low} to ${low + 5:.2f}",
        "customization_options": options,
        "images": [""],
    }
    told = {
        "attributes": traits,
        "instruction": f"Find me {traits[0]} {kind}",
        "instruction_attributes": traits[:1],
    }
    return item, told
