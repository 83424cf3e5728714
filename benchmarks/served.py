"""Whole trees on a running server: branching inside it against a client that resubmits.

The client runs the same rule on the entropies of a stream, and sends the prefix again for every
child: the engine's prefix cache is all it can hope for.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import torch

from benchmarks.engine import VOCAB, random_model
from benchmarks.harness import Case, Timing
from spark.serve.server import bind

THRESHOLD = 3.5
"""Nats that most tokens of `tree_model` exceed, and enough in every text to spend the budget."""
# leaves, roots, tokens of a leaf, prompt; prompts end about the middle of a block or a page
SHAPES = ((8, 2, 192, 1096), (16, 4, 192, 1096), (16, 2, 128, 2120))
QUICK = ((8, 2, 96, 584),)


def tree_model(folder: Path) -> Path:
    """Write a random model whose entropies differ from token to token: 3 to 5 nats for most.

    One with the usual small weights is equally unsure of every token, to a thousandth of a nat.
    """
    model = random_model("1M", torch.float32)
    model.config.tie_word_embeddings = False
    model.config.max_position_embeddings = 8192
    noise = torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight = torch.nn.Parameter(0.24 * noise)
    model.save_pretrained(folder / "trees")
    save_tokenizer(folder / "trees")
    return folder / "trees"


def save_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes beside the model: a server wants one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {chr(0x100 + index): index for index in range(VOCAB)}
    backend = Tokenizer(models.BPE(vocab=names, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)


@contextmanager
def server(model: Path, *flags: str) -> Iterator[str]:
    """Run `spark serve` until left; yield its URL."""
    listener, url = bind("127.0.0.1", 0)
    listener.close()
    spark = Path(sys.executable).with_name("spark")
    command = [str(spark), "serve", str(model), "--port", url.rpartition(":")[2], *flags]
    log = model / "server.log"
    # threads of the model that wait for each other would wait for the server's own work, too
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        asyncio.run(started(url, process, log))
        yield url
    finally:
        process.terminate()
        process.wait(30)


async def started(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the server answers."""
    async with aiohttp.ClientSession() as session:
        for _ in range(400):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                async with session.get(f"{url}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
    raise TimeoutError(log.read_text()[-2000:])


def trees(url: str, vocab: int, quick: bool) -> list[Case]:
    """Time whole trees both ways, in turns, on the same seeds."""
    return [asyncio.run(shape(url, vocab, *each, 3 if quick else 7)) for each in pick(quick)]


def pick(quick: bool) -> tuple[tuple[int, int, int, int], ...]:
    """Return the shapes of the trees to be timed."""
    return QUICK if quick else SHAPES


async def shape(
    url: str, vocab: int, leaves: int, roots: int, tokens: int, prompt: int, rounds: int
) -> Case:
    """Return one case; every round has another prompt and seed, the same for both ways."""
    seconds: dict[str, list[float]] = {"ours": [], "resubmission": []}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        client = Client(session, url, leaves, roots, tokens)
        for number in range(rounds + 1):
            for name, way in (("ours", client.in_server), ("resubmission", client.by_client)):
                # a prompt of its own each time, so that no cache helps either
                seed = 2 * number + (name == "ours")
                ids = [(seed * 7919 + at * 104729 + at * at * 31) % vocab for at in range(prompt)]
                begun = time.perf_counter()
                lengths = await way(ids, number)
                took = time.perf_counter() - begun
                assert lengths == [tokens] * leaves, f"{name}: leaves of {lengths} tokens"
                if number:
                    seconds[name].append(took)
    times = {name: timing(values) for name, values in seconds.items()}
    mine = times.pop("ours")
    return Case(
        op="whole_trees",
        case={"leaves": leaves, "roots": roots, "tokens": tokens, "prompt": prompt},
        metric="wall-clock",
        unit="s",
        ours=mine,
        baselines=times,
        ratio={name: other.median / mine.median for name, other in times.items()},
        target={"resubmission": 1.0},
        met=times["resubmission"].median > mine.median,
    )


def timing(values: list[float]) -> Timing:
    """Return median and spread."""
    return Timing(statistics.median(values), min(values), max(values), len(values))


class Client:
    """Grows trees of one shape."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, leaves: int, roots: int, tokens: int
    ) -> None:
        self._session, self._url = session, f"{url}/v1/completions"
        self._leaves, self._roots, self._tokens = leaves, roots, tokens

    async def in_server(self, prompt: list[int], seed: int) -> list[int]:
        """Let the server branch; return the lengths of the leaves."""
        branching = {
            "policy": "entropy",
            "roots": self._roots,
            "entropy_threshold": THRESHOLD,
            "keep": False,
            "return_nodes": False,
        }
        body = self._body(prompt, self._tokens, seed) | {"n": self._leaves, "branching": branching}
        async with self._session.post(self._url, json=body | {"stream": False}) as answer:
            told = await answer.json()
        return [len(choice["token_ids"]) for choice in told["choices"]]

    async def by_client(self, prompt: list[int], seed: int) -> list[int]:
        """Run the rule here; return the lengths of the leaves."""
        spare = self._leaves - self._roots
        lengths: list[int] = []

        async def leaf(shared: list[int], number: int) -> None:
            nonlocal spare
            tokens, born = list(shared), []
            body = self._body(prompt + shared, self._tokens - len(shared), seed * 100 + number)
            body |= {"stream": True, "branching": {"policy": "none", "keep": False}}
            async with self._session.post(self._url, json=body) as answer:
                async for line in answer.content:
                    event = line.removeprefix(b"data: ")
                    if not event.strip() or event.startswith(b"[DONE]"):
                        continue
                    for choice in json.loads(event)["choices"]:
                        for token, entropy in zip(
                            choice["token_ids"], choice["branch"].get("entropies", []), strict=True
                        ):
                            # a token drawn again at a fork does not fork once more
                            fresh = len(tokens) > len(shared) or not shared
                            if entropy > THRESHOLD and spare > 0 and fresh:
                                spare -= 1
                                again = leaf(list(tokens), self._leaves - spare)
                                born.append(asyncio.create_task(again))
                            tokens.append(token)
            lengths.append(len(tokens))
            await asyncio.gather(*born)

        await asyncio.gather(*(leaf([], root) for root in range(self._roots)))
        return lengths

    def _body(self, prompt: list[int], tokens: int, seed: int) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "max_tokens": tokens,
            "seed": seed,
            "ignore_eos": True,
            "return_token_ids": True,
        }
