"""The coordinator on the embedded engine, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from tiny_models import greedy, prompt, tiny, tokenizer
from tokenizers.processors import TemplateProcessing

from spark import LocalEngine
from spark.engines.base import EngineError, SamplingParams
from spark.serve.constraint import Constraints
from spark.serve.limits import Limits
from spark.serve.local import LocalBackend
from spark.serve.metrics import Metrics
from spark.serve.nodes import ServedTree
from spark.serve.openai import CompletionBody, encoded
from spark.serve.plan import Request
from spark.serve.protocol import Branching, Constraint
from spark.serve.tree import TreeRun
from spark.serve.trees import Trees

PROMPT = prompt(11)
THRESHOLD = 3.9
ALONE = {"policy": "none", "keep": False}
BRANCHY = {"policy": "entropy", "roots": 2, "entropy_threshold": THRESHOLD}


@asynccontextmanager
async def served(
    blocks: int = 1024, **limits: Any
) -> AsyncGenerator[tuple[Trees, LocalEngine, CollectorRegistry], None]:
    registry = CollectorRegistry()
    async with LocalEngine(
        tiny("qwen3"), num_blocks=blocks, block_size=8, tokenizer=tokenizer()
    ) as engine:
        backend = LocalBackend(engine, tokenizer(), "tiny")
        yield Trees(backend, Limits(**limits), Metrics(registry)), engine, registry


def request(n: int = 8, tokens: list[int] = PROMPT, **settings: Any) -> Request:
    branching = Branching.model_validate(settings.pop("branching", BRANCHY))
    params = SamplingParams(**{"max_tokens": 24, "seed": 5} | settings)
    return Request(tokens=tokens, n=n, params=params, branching=branching)


async def grow(trees: Trees, asked: Request) -> tuple[ServedTree, TreeRun]:
    async with trees.run(asked) as (tree, run):
        async for _ in run.events():
            pass
    return tree, run


def facts(tree: ServedTree, run: TreeRun) -> list[Any]:
    """Everything that must repeat: the tree's shape and its tokens."""
    return [
        [(n.node.parent, n.start, n.node.tokens, n.stop, n.node.trigger) for n in tree.nodes],
        [(leaf.lineage, leaf.node.id, leaf.inherited) for leaf in run.leaves],
    ]


def test_a_tree_is_a_function_of_its_request() -> None:
    async def check() -> None:
        async with served() as (trees, engine, _):
            alone = facts(*await grow(trees, request()))
            others = [grow(trees, request(seed=seed, max_tokens=40)) for seed in range(6)]
            among, *_ = await asyncio.gather(grow(trees, request()), *others)
            assert facts(*among) == alone
            assert engine.stats()["recomputed"] == 0
        # a pool that preempts makes leaves run at very different paces
        async with served(blocks=18) as (trees, engine, _):
            assert facts(*await grow(trees, request())) == alone
            assert engine.stats()["preemptions"] > 0

    asyncio.run(check())


def test_nodes_make_the_leaves_and_count_each_token_once() -> None:
    async def check() -> None:
        async with served() as (trees, engine, registry):
            tree, run = await grow(trees, request())
            assert len(run.leaves) == 8 and run.cost.shared > 0
            assert all(leaf.node.tokens() == leaf.tokens for leaf in run.leaves)
            assert all(len(leaf.tokens) == 11 + 24 for leaf in run.leaves)
            sampled = sum(sum(n.node.sampled) for n in tree.nodes)
            assert sampled == run.cost.generated == engine.stats()["generated"]
            assert run.cost.generated + run.cost.shared == 8 * 24
            assert sum(tree.weight(leaf.node) for leaf in run.leaves) == pytest.approx(1)
            count = registry.get_sample_value
            assert count("spark:generated_tokens_total") == run.cost.generated
            assert count("spark:reused_tokens_total") == run.cost.shared
            assert count("spark:forks_total", {"path": "exact"}) == 7
            await trees.delete(tree.id)
            assert engine.stats()["blocks_in_use"] == 0

    asyncio.run(check())


def test_a_leaf_that_is_stopped_in_the_engine_fails_its_request() -> None:
    async def check() -> None:
        async with served() as (trees, engine, _):
            with pytest.raises(EngineError, match=r"tree-.*/0\.0 was stopped in the engine"):
                async with (
                    trees.run(request(max_tokens=400)) as (_, run),
                    aclosing(run.events()) as e,
                ):
                    async for event in e:
                        if event.delta is not None:
                            await trees.backend.abort([run.leaves[0].id])
            assert engine.stats()["blocks_in_use"] == 0

    asyncio.run(asyncio.wait_for(check(), 60))


@pytest.mark.parametrize("new", [1, 3])
def test_nothing_is_kept_of_a_request_that_is_cancelled_at_any_time(new: int) -> None:
    async def cancelled(trees: Trees, turns: int) -> bool:
        task = asyncio.create_task(grow(trees, request(n=1, max_tokens=new, branching=ALONE)))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return done

    async def check() -> None:
        async with served() as (trees, engine, registry):
            turns = 0
            while not await cancelled(trees, turns):
                turns += 1
            assert turns > 10
            count = registry.get_sample_value
            assert count("spark:leaves_reserved") == count("spark:trees_running") == 0
            assert engine.stats()["blocks_in_use"] == 0
            # as it asks before new weights come
            await trees.drop_all()

    asyncio.run(asyncio.wait_for(check(), 60))


def test_who_waits_for_a_dead_engine_is_told() -> None:
    """As vLLM when it is stopped: the engine is gone, and nobody tells those who wait."""

    class Silent(LocalBackend):
        failure = "it was stopped"

        async def generate(self, request: Any) -> AsyncGenerator[Any, None]:
            await asyncio.Event().wait()
            yield

    async def check() -> None:
        async with served() as (trees, engine, _):
            trees.backend = Silent(engine, tokenizer(), "tiny")
            watch = asyncio.create_task(trees.watch())
            for _ in range(2):
                with pytest.raises(EngineError, match="it was stopped"):
                    await grow(trees, request())
            watch.cancel()

    asyncio.run(asyncio.wait_for(check(), 60))


def test_children_resample_the_flagged_token() -> None:
    async def check() -> None:
        async with served() as (trees, _, _):
            tree, _ = await grow(trees, request())
            heads = [n for n in tree.nodes if n.stop == "fork"]
            assert heads
            for head in heads:
                tails = [n for n in tree.nodes if n.parent is head]
                assert len(tails) >= 2
                entropies = {round(tail.node.entropies[0], 3) for tail in tails}
                assert len(entropies) == 1 and entropies.pop() > BRANCHY["entropy_threshold"]
                assert all(
                    value <= BRANCHY["entropy_threshold"] for value in head.node.entropies[1:]
                )

    asyncio.run(check())


def test_greedy_leaves_equal_the_plain_continuation() -> None:
    async def check() -> None:
        async with served() as (trees, engine, _):
            _, run = await grow(trees, request(temperature=0.0, branching=BRANCHY | {"roots": 1}))
            assert len(run.leaves) > 2
            assert all(leaf.tokens[11:] == greedy("qwen3", PROMPT, 24) for leaf in run.leaves)
            assert engine.stats()["recomputed"] == 0

    asyncio.run(check())


def test_a_leaf_goes_on_behind_a_tools_answer() -> None:
    async def check() -> None:
        async with served() as (trees, engine, _):
            tree, run = await grow(trees, request())
            for leaf in run.leaves[:3]:
                for _ in range(2):
                    behind = {"tree": tree.id, "from": leaf.node.id}
                    asked = request(1, [1, 2, 3], temperature=0.0, branching=behind)
                    same, more = await grow(trees, asked)
                    whole = [*leaf.tokens, 1, 2, 3]
                    assert same is tree
                    assert more.leaves[0].tokens == [*whole, *greedy("qwen3", whole, 24)]
            assert engine.stats()["recomputed"] == 0
            cut = {"tree": tree.id, "from": run.leaves[0].node.id, "fork_at": 13}
            _, early = await grow(trees, request(1, [], temperature=0.0, branching=cut))
            head = run.leaves[0].tokens[:13]
            assert early.leaves[0].tokens == [*head, *greedy("qwen3", head, 24)]
            assert early.cost.recomputed == 0

    asyncio.run(check())


def test_a_tag_may_be_opened_before_a_continuation() -> None:
    """The same decision branches at its flag, in one request or cut in the middle of the tag."""
    encode = tokenizer().encode
    opening, flag = encode("<action>"), [*encode("<explore>a</explore>"), *encode("bed")]

    async def leaves(cut: int) -> int:
        async with served() as (trees, _, _):
            make = Constraints(trees.backend).make

            def asked(n: int, before: list[int], **settings: Any) -> Request:
                limit = Constraint(opening="<action>", choices=[flag], before=before)
                return replace(request(n, **settings), constrain=make(limit))

            first = asked(
                1 if cut else 2, opening, branching={"policy": "spark"}, max_tokens=cut or 40
            )
            tree, run = await grow(trees, first)
            if not cut:
                return len(run.leaves)
            said = run.leaves[0].tokens[len(PROMPT) :]
            assert said == flag[:cut]
            behind = {"tree": tree.id, "from": run.leaves[0].node.id}
            more = asked(2, [*opening, *said], tokens=[], branching=behind, max_tokens=40)
            return len((await grow(trees, more))[1].leaves)

    async def check() -> None:
        assert [await leaves(cut) for cut in (0, 4, len(flag) - 5)] == [2, 2, 2]

    asyncio.run(check())


def test_a_text_begins_only_where_a_text_begins() -> None:
    """Tokenizers that put a token before every text put none behind a leaf."""
    begins = deepcopy(tokenizer())
    first = begins.convert_tokens_to_ids("<|end|>")
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", first)]
    )
    text = "look at the bed"
    plain = tokenizer().encode(text)
    fresh = CompletionBody(prompt=text)
    behind = CompletionBody(prompt=text, branching=Branching(tree="t", **{"from": 1}))
    assert encoded(begins, fresh, text) == [first, *plain]
    assert encoded(begins, behind, text) == plain
    assert encoded(begins, behind, "") == []
