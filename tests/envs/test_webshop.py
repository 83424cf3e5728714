"""WebShop: the official schema, the reward formula, the pages, forks that cost nothing."""

import json
import os
import signal
from dataclasses import replace

import pytest
import random_policy

pytest.importorskip("bm25s")
pytest.importorskip("rapidfuzz")

from spark.envs import ENVS
from spark.envs.conformance import conform
from spark.envs.pool import PooledSource
from spark.envs.webshop import WebShopOptions
from spark.envs.webshop.catalogue import Goal, Product, read_catalogue
from spark.envs.webshop.reward import reward
from spark.envs.webshop.source import WebShopSource

LAMP = {
    "asin": "B000000001",
    "name": "Brass Reading Lamp with Shade",
    "category": "garden",
    "query": " Desk Lamp ",
    "product_category": "Home › Lighting › Lamps",
    "full_description": "Warm light for long evenings.",
    "small_description": ["dimmable", "easy assembly"],
    "pricing": "$1,024.50",
    "customization_options": {"Color": [{"value": "Antique/Gold ", "image": None}], "Size": None},
}
MUG = LAMP | {
    "asin": "B000000002",
    "name": "Stoneware Coffee Mug",
    "category": "grocery",
    "query": "mug",
    "product_category": "Kitchen › Cups › Mugs",
    "full_description": None,
    "small_description": "dishwasher safe",
    "pricing": "$12.00 to $14.00",
    "customization_options": {},
}
TOLD = {
    "B000000001": {"attributes": ["dimmable light"], "instruction": None},
    "B000000002": {
        "attributes": ["dishwasher safe"],
        "instruction": "Find me a dishwasher safe mug",
        "instruction_attributes": ["dishwasher safe"],
    },
}
WRITTEN = {
    "B000000001": [
        {
            "instruction": "i need a dimmable lamp in gold.",
            "instruction_attributes": ["dimmable"],
            "instruction_options": {"color": "gold"},
        },
        {"instruction": "nothing", "instruction_attributes": [], "instruction_options": {}},
    ]
}


@pytest.fixture
def folder(tmp_path):
    long = LAMP | {"asin": "B0000000011"}
    files = {
        "items_shuffle_1000.json": [LAMP, MUG, LAMP, long],
        "items_ins_v2_1000.json": TOLD,
        "items_human_ins.json": WRITTEN,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def small(**options):
    return WebShopSource(WebShopOptions(**{"products": 60} | options))


@pytest.mark.parametrize("free_search", [True, False])
def test_conformance(free_search):
    conform(small(free_search=free_search), steps=12)


def test_official_files_are_read(folder):
    found = read_catalogue(folder)
    lamp, mug = found.products.values()
    assert (lamp.price, lamp.price_text) == (1024.5, "$1024.5")
    assert lamp.options == {"color": ["antique | gold"]} and lamp.query == "desk lamp"
    assert 12.0 <= mug.price <= 14.0 and mug.price_text == "$12.0 to $14.0"
    assert mug.features == ["dishwasher safe"] and mug.description == ""
    (goal,) = found.goals
    assert (goal.instruction, goal.price_upper) == ("i need a dimmable lamp in gold", 1e6)
    assert (goal.attributes, goal.options) == (["dimmable"], ["gold"])
    (made,) = read_catalogue(folder, human=False).goals
    assert made.asin == "B000000002" and made.price_upper in (30.0, 40.0, 50.0)
    assert made.instruction.startswith("Find me a dishwasher safe mug, and price lower than ")
    assert made.instruction.endswith(f"{made.price_upper:.2f} dollars")


def test_reward_by_hand():
    lamp = Product(
        asin="a",
        name="Brass Reading Lamp",
        category="garden",
        query="lamp",
        product_category="Home › Lamps",
        description="Warm light.",
        features=["dimmable", "easy assembly"],
        attributes=["usb charging"],
        price=20.0,
        price_text="$20",
        options={"color": ["dark red", "blue"]},
    )
    goal = Goal(
        asin="a",
        instruction="",
        attributes=["dimmable", "usb charging", "waterproof"],
        options=["red", "large"],
        price_upper=25.0,
    )
    # dimmable by the text, charging by the list, red as a colour, the price; not waterproof, large
    assert reward(lamp, lamp, goal, ["dark red"]) == pytest.approx(4 / 6)
    assert reward(lamp, lamp, goal, ["blue"]) == pytest.approx(3 / 6)
    dear = replace(lamp, price=25.5)
    assert reward(dear, lamp, goal, ["dark red"]) == pytest.approx(3 / 6)
    other = replace(lamp, name="Wooden Spoon", query="spoon", product_category="Kitchen")
    assert reward(other, lamp, goal, ["dark red"]) == 0.0
    # one word of twelve in common is nearly nothing, one of five no more than a hint
    many = replace(lamp, name=" ".join(f"word{chr(97 + k)}" for k in range(11)) + " lamp")
    apart = replace(lamp, query="spoon", product_category="Kitchen")
    assert reward(apart, many, goal, ["blue"]) == pytest.approx(0.1 * 3 / 6)
    few = replace(lamp, name="one two three four lamp", query="x")
    assert reward(apart, few, goal, ["blue"]) == pytest.approx(0.5 * 3 / 6)


def test_shopping_trip(folder):
    source = WebShopSource(WebShopOptions(data=folder, held_out=()))
    env = source.make()
    text, info = env.reset(f"L1/0@{source.shop.catalogue.digest}")
    assert text == "WebShop [SEP] Instruction: i need a dimmable lamp in gold [SEP] Search"
    assert info["admissible"] is None and "search[dimmable lamp gold]" in info["examples"]
    text, *_, info = env.step("search[Reading LAMP]")
    assert text == (
        "Back to Search [SEP] Page 1 (Total results: 1) [SEP] B000000001 [SEP] "
        "Brass Reading Lamp with Shade [SEP] $1024.5"
    )
    assert info["admissible"] == ["click[back to search]", "click[b000000001]"]
    assert env.step("click[buy now]")[0] == "Nothing happens."
    text, *_, info = env.step("click[B000000001]")
    assert "click[antique | gold]" in info["admissible"] and "Price: $1024.5" in text
    assert "antique | gold (chosen)" in env.step("click[antique | gold]")[0]
    assert "dimmable [SEP] easy assembly" in env.step("click[features]")[0]
    assert "antique | gold (chosen)" in env.step("click[< prev]")[0]
    text, bought, over, _, info = env.step("click[buy now]")
    assert over and info == {"admissible": [], "won": bought == 1.0}
    # dimmable, a gold of some kind, and no price asked
    assert bought == 1.0 and text.endswith("Your score: 1")


def test_results_have_pages():
    env = small().make()
    env.reset(small().tasks("train", 1)[0])
    first, *_, info = env.step("search[free]")
    assert "click[next >]" in info["admissible"] and "click[< prev]" not in info["admissible"]
    second, *_, info = env.step("click[next >]")
    assert "Page 2" in second and "click[< prev]" in info["admissible"]
    assert env.step("click[< prev]")[0] == first
    assert "Total results: 0" in env.step("search[xylophone]")[0]


def test_splits_are_disjoint_and_hold_out_a_category():
    source = small()
    catalogue = source.shop.catalogue
    numbers = {split: set(source._numbers(split)) for split in ("train", "L0", "L1", "L2")}
    assert sum(map(len, numbers.values())) == len(set().union(*numbers.values()))
    for split, found in numbers.items():
        kinds = {catalogue.products[catalogue.goals[number].asin].category for number in found}
        assert (kinds == {"garden"}) == (split == "L2") and found
    with pytest.raises(ValueError, match=r"held_out=\(\) leaves no goal for split L2"):
        small(held_out=()).tasks("L2", 1)


def test_rollout_by_a_random_policy():
    source = small(free_search=False)
    random_policy.roll(source, source.tasks("train", 1), horizon=8)


def test_killed_worker_is_replaced():
    source = small()
    with PooledSource(source, workers=1) as pool:
        env = pool.make()
        env.reset(source.tasks("train", 1)[0])
        found = env.step("search[tea]")
        os.kill(pool.pids()[0], signal.SIGKILL)
        assert env.step("search[tea]") == found


def test_errors_name_the_remedy(tmp_path):
    assert ENVS["webshop"] is WebShopSource
    with pytest.raises(ValueError, match="is no folder"):
        WebShopSource(WebShopOptions(data=tmp_path / "none"))
    with pytest.raises(ValueError, match=r"has no items_shuffle\*.json; give the folder"):
        WebShopSource(WebShopOptions(data=tmp_path)).tasks("train", 1)
    with pytest.raises(ValueError, match="belongs to another catalogue"):
        small().make().reset("train/0@00000000")
    with pytest.raises(ValueError, match="products=3 is too small"):
        WebShopOptions(products=3)
    with pytest.raises(ValueError, match="split: unknown 'dev'"):
        small().tasks("dev", 1)
