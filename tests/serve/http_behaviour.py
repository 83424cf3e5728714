"""What every server must do over HTTP: checks that take a `Subject`, run on every engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from http_client import Client

SMALL = {"max_leaves": 16, "max_running_leaves": 64, "max_trees": 32, "max_body_bytes": 100_000}
"""Limits of the server that is to be overrun."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A server under test and the truth to hold it against."""

    start: Callable[..., AbstractContextManager[str]]
    """Takes fields of `Limits`, serves until left, gives the URL. A server may be shared between
    checks that ask for the same limits."""
    prompt: Callable[[int, int], list[int]]
    """(length, seed) -> token ids."""
    greedy: Callable[[list[int], int], list[int]]
    """(tokens, new) -> the greedy continuation."""
    text: Callable[[Sequence[int]], str]
    context: int
    vocab_size: int
    recomputed: int = 0
    """Most tokens that a fork may compute again."""
    shared: bool = False
    """Whether `start` gives a server that other checks have used."""
    alone: bool = True
    """Whether there is no other server behind ours, that answers bodies without `branching` in its
    own words."""
    threshold: float = 3.5
    """Nats that some tokens' entropies exceed and some do not."""

    @property
    def entropy(self) -> dict[str, Any]:
        """A `branching` object whose trees branch often."""
        return {"policy": "entropy", "roots": 2, "entropy_threshold": self.threshold}

    def body(self, length: int = 11, seed: int = 0, **fields: Any) -> dict[str, Any]:
        """A request that samples at random and never ends early."""
        start = {"prompt": self.prompt(length, seed), "max_tokens": 24, "seed": 5}
        return start | {"ignore_eos": True, "return_token_ids": True} | fields


def rebuilt(answer: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of every leaf as the nodes give them, prompt included."""
    nodes = {node["id"]: node for node in answer["branching"]["nodes"]}
    leaves = []
    for choice in answer["choices"]:
        tokens: list[int] = []
        for each in choice["branch"]["path"]:
            tokens[nodes[each]["start"] :] = nodes[each]["token_ids"]
        leaves.append(tokens)
    return leaves


async def a_request_without_branching_is_an_ordinary_one(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(temperature=0, max_tokens=12)
            answer = await client.good(body)
            assert "branching" not in answer and "branch" not in answer["choices"][0]
            (choice,) = answer["choices"]
            assert choice["token_ids"] == subject.greedy(body["prompt"], 12)
            assert choice["text"] == subject.text(choice["token_ids"])
            assert choice["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == 12
            several = await client.good(subject.body(n=3, temperature=1.0))
            assert len({tuple(choice["token_ids"]) for choice in several["choices"]}) == 3
            nothing = await client.good(body | {"branching": {"policy": "none"}})
            assert nothing["branching"]["id"] and nothing["choices"][0]["branch"]["path"] == [0, 1]


async def trees_are_whole_and_billed_once(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(n=8, branching=subject.entropy)
            answer = await client.good(body)
            tree, choices = answer["branching"], answer["choices"]
            assert [choice["index"] for choice in choices] == list(range(8))
            assert sum(choice["branch"]["weight"] for choice in choices) == pytest.approx(1)
            for choice, tokens in zip(choices, rebuilt(answer), strict=True):
                assert tokens == body["prompt"] + choice["token_ids"]
                assert len(choice["token_ids"]) == 24
                assert choice["text"] == subject.text(choice["token_ids"])
            sampled = [node for node in tree["nodes"] if "logprobs" in node]
            for node in sampled:
                values = (node["logprobs"], node["entropies"], node["log_kept_mass"])
                assert {len(node["token_ids"])} == set(map(len, values))
                assert all(value <= 1e-5 for value in node["logprobs"] + node["log_kept_mass"])
            billed = answer["usage"]["completion_tokens"]
            assert billed == tree["generated_tokens"]
            assert billed == sum(len(node["token_ids"]) for node in sampled)
            assert billed + tree["shared_tokens"] == 8 * 24 and tree["shared_tokens"] > 0
            assert tree["recomputed_tokens"] <= 7 * subject.recomputed
            assert await client.delete(tree["id"]) == 200


async def forks_stand_where_the_rule_says(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            answer = await client.good(subject.body(n=8, branching=subject.entropy))
            nodes = answer["branching"]["nodes"]
            heads = [node for node in nodes if node["stop"] == "fork"]
            assert heads
            for head in heads:
                tails = [node for node in nodes if node["parent"] == head["id"]]
                assert len(tails) >= 2
                assert all(tail["entropies"][0] > subject.threshold - 1e-3 for tail in tails)
            deep = subject.entropy | {"max_depth": 1, "roots": 1}
            answer = await client.good(subject.body(n=8, branching=deep))
            assert max(len(c["branch"]["lineage"]) for c in answer["choices"]) == 2


async def greedy_leaves_equal_independent_requests(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(n=6, temperature=0, branching=subject.entropy)
            answer = await client.good(body)
            want = subject.greedy(body["prompt"], 24)
            assert len(answer["choices"]) == 6
            assert all(choice["token_ids"] == want for choice in answer["choices"])


async def one_seed_gives_one_tree(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(n=8, branching=subject.entropy)
            alone = await client.good(body)
            others = [client.good(body | {"seed": seed, "max_tokens": 40}) for seed in range(4)]
            among, *_ = await asyncio.gather(client.good(body), *others)
            other = await client.good(body | {"seed": 6})
    shape = [(n["parent"], n["start"], n["token_ids"], n["stop"]) for n in nodes_of(alone)]
    assert shape == [(n["parent"], n["start"], n["token_ids"], n["stop"]) for n in nodes_of(among)]
    assert shape != [(n["parent"], n["start"], n["token_ids"], n["stop"]) for n in nodes_of(other)]


def nodes_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return answer["branching"]["nodes"]


async def a_stream_adds_up_to_the_whole(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(n=6, branching=subject.entropy, logprobs=0)
            whole = await client.good(body)
            events = await client.stream(body | {"stream_options": {"include_usage": True}})
    last = events[-1]
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert [n["token_ids"] for n in nodes_of(last)] == [n["token_ids"] for n in nodes_of(whole)]
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [t for piece in mine for t in piece["token_ids"]] == choice["token_ids"]
        logprobs = [v for piece in mine for v in piece["logprobs"]["token_logprobs"]]
        assert logprobs == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)
        reasons = [piece["finish_reason"] for piece in mine]
        assert reasons[:-1] == [None] * (len(mine) - 1)
        assert reasons[-1] == choice["finish_reason"]


async def a_leaf_goes_on_behind_a_tools_answer(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            answer = await client.good(subject.body(n=4, branching=subject.entropy))
            tree = answer["branching"]["id"]
            for tokens, choice in list(zip(rebuilt(answer), answer["choices"], strict=True))[:2]:
                behind = {"tree": tree, "from": choice["branch"]["node"], "prefix": tokens}
                more = subject.body(prompt=[1, 2, 3], temperature=0, branching=behind)
                # twice: the first one must not disturb the second
                for _ in range(2):
                    answer = await client.good(more)
                    want = subject.greedy([*tokens, 1, 2, 3], 24)
                    assert answer["choices"][0]["token_ids"] == want
                    assert answer["branching"]["id"] == tree
                    assert answer["branching"]["prompt_tokens"] == 3
                    assert answer["branching"]["recomputed_tokens"] <= subject.recomputed
                    assert answer["usage"]["prompt_tokens"] == len(tokens) + 3
            # and the continuation itself
            (deep,) = answer["choices"]
            whole = [*tokens, 1, 2, 3, *deep["token_ids"]]
            behind = {"tree": tree, "from": deep["branch"]["node"]}
            last = await client.good(subject.body(prompt=[], temperature=0, branching=behind))
            assert last["choices"][0]["token_ids"] == subject.greedy(whole, 24)


async def a_leaf_forks_in_its_past(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            answer = await client.good(subject.body(n=2, branching=subject.entropy))
            tree, (tokens, *_) = answer["branching"]["id"], rebuilt(answer)
            node = answer["choices"][0]["branch"]["node"]
            for at in (1, 5, 11, 12, 20, len(tokens)):
                cut = {"tree": tree, "from": node, "fork_at": at}
                more = subject.body(prompt=[], temperature=0, max_tokens=8, branching=cut)
                answer = await client.good(more)
                assert answer["choices"][0]["token_ids"] == subject.greedy(tokens[:at], 8), at
                assert answer["branching"]["recomputed_tokens"] <= subject.recomputed


async def stops_end_leaves_and_are_cut_off(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            # engines have ways of their own to keep a stop; ours is the same everywhere
            body = subject.body(temperature=0, branching={"policy": "none"})
            long = subject.greedy(body["prompt"], 24)
            text = subject.text(long)
            middle = len(subject.text(long[:9]))
            stop = text[middle - 1 : middle + 1]
            cut = text[: text.index(stop)]
            whole = await client.good(body | {"stop": ["never", stop]})
            kept = await client.good(body | {"stop": stop, "include_stop_str_in_output": True})
            events = await client.stream(body | {"stop": stop})
            by_id = await client.good(body | {"stop_token_ids": [long[5]]})
    assert whole["choices"][0]["text"] == cut and whole["choices"][0]["finish_reason"] == "stop"
    assert kept["choices"][0]["text"].startswith(cut + stop)
    assert "".join(e["choices"][0]["text"] for e in events if e["choices"]) == cut
    assert by_id["choices"][0]["token_ids"] == long[: long.index(long[5]) + 1]


async def chats_are_answered_and_continued(subject: Subject) -> None:
    path = "/v1/chat/completions"
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(messages=[{"role": "user", "content": "look"}], n=3)
            del body["prompt"]
            body |= {"logprobs": True, "branching": subject.entropy}
            whole = await client.good(body, path)
            events = await client.stream(body, path)
            choice = whole["choices"][0]
            behind = {"tree": whole["branching"]["id"], "from": choice["branch"]["node"]}
            turn = [{"role": "tool", "content": "a key"}]
            more = body | {"messages": turn, "n": 1, "temperature": 0, "branching": behind}
            next_turn = await client.good(more, path)
            parts = [{"type": "text", "text": "look"}]
            same = await client.good(
                body | {"messages": [{"role": "user", "content": parts}]}, path
            )
            image = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]
            status, refused = await client.ask(body | {"messages": image}, path)
    assert same["prompt_token_ids"] == whole["prompt_token_ids"]
    assert (status, refused["error"]["param"]) == (400, "messages.0.content.0")
    assert whole["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": subject.text(choice["token_ids"])}
    assert len(choice["logprobs"]["content"]) == 24
    said = [e["choices"][0]["delta"] for e in events[:-1] if e["choices"][0]["index"] == 0]
    assert said[0]["role"] == "assistant"
    assert "".join(piece["content"] for piece in said) == choice["message"]["content"]
    ids = next_turn["prompt_token_ids"]
    assert ids[: len(whole["prompt_token_ids"])] == whole["prompt_token_ids"]
    assert "a key" in subject.text(ids[-next_turn["branching"]["prompt_tokens"] :])
    assert next_turn["choices"][0]["token_ids"] == subject.greedy(ids, 24)


async def metrics_count_what_happened(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            before = await client.metrics()
            tree = (await client.good(subject.body(n=8, branching=subject.entropy)))["branching"]
            after = await client.metrics()
    gain = {name: value - before.get(name, 0.0) for name, value in after.items()}
    assert gain["spark:generated_tokens_total"] == tree["generated_tokens"]
    assert gain["spark:reused_tokens_total"] == tree["shared_tokens"]
    paths = [f'spark:forks_total{{path="{path}"}}' for path in ("exact", "cache", "recompute")]
    assert sum(gain[path] for path in paths) == 7 and gain[paths[0]] == 7
    assert gain["spark:fork_latency_seconds_count"] == 6
    assert gain["spark:token_entropy_nats_count"] == tree["generated_tokens"]
    assert after["spark:trees_running"] == after["spark:leaves_reserved"] == 0


def limited(choices: list[list[int]], **more: Any) -> dict[str, Any]:
    """A `branching` object with a constraint."""
    constraint = {"opening": "<action>", "choices": choices, **more}
    return {"branching": {"policy": "none", "constraint": constraint}}


def bad_requests(subject: Subject, tree: str) -> list[tuple[dict[str, Any], str | None, int]]:
    """Return (what is wrong, the field the answer must name, its status)."""
    new: dict[str, Any] = subject.entropy
    known = {"tree": tree, "from": 0}
    spark = {"policy": "spark"}
    return [
        ({"branching": new | {"policy": "sprak"}}, "branching.policy", 400),
        # a client names a rule, it does not import one
        ({"branching": {"policy": "this:x"}}, "branching.policy", 400),
        ({"branching": {"policy": "spark.branching.rules:EntropyRule"}}, "branching.policy", 400),
        ({"branching": {"policy": "random"}}, "branching.policy", 400),
        ({"branching": new | {"policy": 3}}, "branching.policy", 400),
        ({"branching": new | {"width": 1}}, "branching.width", 400),
        ({"branching": new | {"width": 2.5}}, "branching.width", 400),
        ({"branching": new | {"width": "2"}}, "branching.width", 400),
        ({"branching": new | {"width": True}}, "branching.width", 400),
        ({"branching": new | {"roots": 0}}, "branching.roots", 400),
        ({"branching": new | {"roots": 9}, "n": 8}, "branching.roots", 400),
        ({"branching": new | {"max_depth": 0}}, "branching.max_depth", 400),
        ({"branching": new | {"entropy_threshold": -1}}, "branching.entropy_threshold", 400),
        ({"branching": new | {"trigger": "<explore>"}}, "branching.trigger", 400),
        ({"branching": spark | {"trigger": "explore"}}, "branching.trigger", 400),
        ({"branching": spark | {"entropy_threshold": 1}}, "branching.entropy_threshold", 400),
        ({"branching": new | {"widht": 3}}, "branching.widht", 400),
        ({"branching": "spark"}, "branching", 400),
        ({"branching": [new]}, "branching", 400),
        ({"branching": new, "n": 0}, "n", 400),
        ({"branching": new, "n": -3}, "n", 400),
        ({"branching": new, "n": SMALL["max_leaves"] + 1}, "n", 400),
        ({"branching": {"tree": tree}}, "branching.from", 400),
        ({"branching": {"from": 0}}, "branching.tree", 400),
        ({"branching": {"fork_at": 3}}, "branching.fork_at", 400),
        ({"branching": {"tree": "tree-0", "from": 0}}, "branching.tree", 404),
        ({"branching": known | {"from": 10_000}}, "branching.from", 400),
        ({"branching": known | {"from": -1}}, "branching.from", 400),
        ({"branching": known | {"fork_at": 12}}, "branching.fork_at", 400),
        ({"branching": known | {"fork_at": -1}}, "branching.fork_at", 400),
        ({"branching": known | {"fork_at": 0}}, "branching.fork_at", 400),
        ({"branching": known | {"prefix": [1, 2]}}, "branching.prefix", 400),
        ({"branching": known | {"prefix": "text"}}, "branching.prefix", 400),
        ({"branching": new | {"pause": {"tags": ["x"]}}}, "branching.pause", 400),
        ({"branching": {"policy": "none", "pause": {"tags": [""]}}}, "branching.pause.tags.0", 400),
        ({"branching": {"policy": "none", "max_depth": 2}}, "branching.max_depth", 400),
        ({"branching": {"policy": "none", "roots": 2}, "n": 4}, "branching.roots", 400),
        ({"branching": new, "prompt": "a\ud83d"}, "prompt", 400),
        ({"branching": new, "stop": ["\ud83d"]}, "stop", 400),
        ({"prompt": []}, "prompt", 400),
        ({"prompt": None}, "prompt", 400),
        ({"prompt": 7}, "prompt", 400),
        ({"prompt": ["a", "b"]}, "prompt", 400),
        ({"prompt": [1, "2"]}, "prompt", 400),
        ({"prompt": [1, -2]}, "prompt", 400),
        ({"prompt": [1, subject.vocab_size]}, "prompt", 400),
        ({"prompt": [1] * (subject.context + 1)}, "prompt", 400),
        ({"max_tokens": 0}, "max_tokens", 400),
        ({"max_tokens": "many"}, "max_tokens", 400),
        ({"temperature": -1}, "temperature", 400),
        ({"temperature": "hot"}, "temperature", 400),
        ({"branching": new, "temperature": 1e-6}, "temperature", 400),
        ({"branching": new, "top_k": 2**31}, "top_k", 400),
        ({"branching": new, "top_p": 1e-60}, "top_p", 400),
        ({"branching": new, "min_tokens": 2.0}, "min_tokens", 400),
        ({"branching": new, "presence_penalty": True}, "presence_penalty", 400),
        ({"branching": new, "frequency_penalty": "1"}, "frequency_penalty", 400),
        ({"branching": new, "repetition_penalty": 0}, "repetition_penalty", 400),
        ({"branching": new, "logit_bias": {"-1": 1.0}}, "logit_bias", 400),
        ({"branching": new, "logit_bias": {str(subject.vocab_size): 1.0}}, "logit_bias", 400),
        ({"branching": new, "allowed_token_ids": [1.5]}, "allowed_token_ids", 400),
        ({"branching": new, "bad_words": 5}, "bad_words", 400),
        ({"branching": new, "regex": 5}, "regex", 400),
        ({"branching": new, "structured_outputs": {"shape": 1}}, "structured_outputs", 400),
        ({"branching": new, "structured_outputs": "x"}, "structured_outputs", 400),
        (limited([[3, 4], [3, 4, 5]]), "branching.constraint.choices.0", 400),
        (limited([[3]], before=[subject.vocab_size]), "branching.constraint.before", 400),
        ({"max_tokens": 2.5}, "max_tokens", 400),
        ({"max_tokens": True}, "max_tokens", 400),
        ({"n": 2.5}, "n", 400),
        ({"temperature": True}, "temperature", 400),
        ({"top_k": 2.0}, "top_k", 400),
        ({"seed": 1.5}, "seed", 400),
        ({"top_p": 0}, "top_p", 400),
        ({"min_p": 1.5}, "min_p", 400),
        ({"seed": -1}, "seed", 400),
        ({"seed": 2**63}, "seed", 400),
        ({"stop": [""]}, "stop", 400),
        ({"stop": [3]}, "stop", 400),
        ({"logprobs": 5}, "logprobs", 400),
        ({"model": "another"}, "model", 404),
        ({"no_such_field": 1}, "no_such_field", 400),
        ({"stream_options": {"include_usage": True}}, "stream_options", 400),
    ]


async def bad_input_names_the_field(subject: Subject) -> None:
    with subject.start(**SMALL) as url:
        async with Client(url) as client:
            kept = await client.good(subject.body(n=2, branching=subject.entropy))
            tree = kept["branching"]["id"]
            for wrong, param, status in bad_requests(subject, tree):
                fields = subject.body(n=8, branching=subject.entropy) | wrong
                got, answer = await client.ask(fields)
                assert (got, answer["error"]["param"]) == (status, param), (wrong, answer)
                assert answer["error"]["message"]
                if "stream_options" not in wrong:
                    got, _ = await client.ask(fields | {"stream": True})
                    assert got == status, wrong
            # what was refused has changed nothing
            behind = {"tree": tree, "from": 0, "fork_at": 11}
            good = subject.body(prompt=[], temperature=0, branching=behind)
            answer = await client.good(good)
            assert answer["choices"][0]["token_ids"] == subject.greedy(subject.prompt(11, 0), 24)
            assert (await client.metrics())["spark:leaves_reserved"] == 0


async def bad_bodies_are_refused(subject: Subject) -> None:
    with subject.start(**SMALL) as url:
        async with Client(url) as client:
            broken = ['{"branching": ', '{"prompt": NaN, "branching": {}}', b'"branching": \xff']
            alien = ["", "{", "[" * 100_000, b"\xff\xfe", '{"prompt": NaN}']

            def ours(body: Any) -> bool:
                return subject.alone or "branching" in str(body)

            for body in broken + alien:
                status, answer = await client.ask(body)
                assert status in (400, 413), body[:20]
                assert not ours(body) or answer["error"]["message"], body[:20]
            none = {"policy": "none"}
            records = [{"branching": none}, {"branching": 3, "prompt": [1]}]
            for record in [*records, None, 3, "text", [], [{}], {}]:
                status, answer = await client.ask(record)
                assert status == 400, record
                assert not ours(record) or answer["error"]["message"], record
            giant = subject.body(prompt="a" * (SMALL["max_body_bytes"] + 1), branching=none)
            status, answer = await client.ask(giant)
            assert status == 413 and str(SMALL["max_body_bytes"]) in answer["error"]["message"]
            many = subject.body(prompt=[1] * 40_000)
            for body in (many, many | {"branching": none}):
                assert (await client.ask(body))[0] in (400, 413)
            assert (await client.good(subject.body()))["choices"]


async def deleted_and_expired_trees_are_gone(subject: Subject) -> None:
    with subject.start(**SMALL) as url:
        async with Client(url) as client:
            first = (await client.good(subject.body(branching=subject.entropy, n=2)))["branching"]
            assert await client.delete(first["id"]) == 200
            assert await client.delete(first["id"]) == 404
            more = subject.body(branching={"tree": first["id"], "from": 0})
            status, answer = await client.ask(more)
            assert (status, answer["error"]["param"]) == (404, "branching.tree")
            # idle trees make room for new ones, the oldest first
            ids = []
            for seed in range(SMALL["max_trees"] + 1):
                short = subject.body(seed=seed, max_tokens=1, branching={"policy": "none"})
                ids.append((await client.good(short))["branching"]["id"])
            for tree, status in ((ids[0], 404), (ids[-1], 200)):
                behind = {"tree": tree, "from": 0}
                got, _ = await client.ask(subject.body(max_tokens=1, branching=behind))
                assert got == status
            once = subject.body(branching=subject.entropy | {"keep": False}, n=2)
            gone = (await client.good(once))["branching"]["id"]
            assert await client.delete(gone) == 404


async def a_client_that_leaves_stops_its_leaves(subject: Subject) -> None:
    with subject.start(**SMALL) as url:
        async with Client(url) as client:
            long = subject.body(n=8, branching=subject.entropy, max_tokens=subject.context - 20)
            for stream in (False, True):
                async with Client(url) as leaving:
                    task = await running(client, leaving, long | {"stream": stream})
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                await settled(client)
            kept = (await client.metrics())["spark:trees_kept"]
            assert kept == 0 or subject.shared
            # the server is as good as before
            answer = await client.good(subject.body(temperature=0))
            assert answer["choices"][0]["token_ids"] == subject.greedy(subject.prompt(11, 0), 24)


async def running(client: Client, other: Client, body: Any) -> asyncio.Task[Any]:
    """Return `other`'s request while its tree runs; a busy machine may look too late at first."""
    for _ in range(5):
        task = asyncio.create_task(other.ask(body))
        over = task.done
        await until(client, lambda now, over=over: now["spark:trees_running"] > 0 or over())
        if not task.done():
            return task
    raise AssertionError(f"every tree was over before it was seen to run: {task}")


async def settled(client: Client) -> None:
    """Return when nothing runs on the server any more."""
    await until(client, lambda now: now["spark:trees_running"] == now["spark:leaves_reserved"] == 0)


async def until(client: Client, holds: Callable[[dict[str, float]], bool]) -> None:
    """Return when the metrics say so."""
    for _ in range(2000):
        now = await client.metrics()
        if holds(now):
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"it never came to that: {now}")


async def deleting_a_running_tree_ends_its_request(subject: Subject) -> None:
    with subject.start(**SMALL) as url:
        async with Client(url) as client:
            for _ in range(5):
                plain = subject.body(max_tokens=0, branching={"policy": "none"})
                behind = {"tree": (await client.good(plain))["branching"]["id"], "from": 0}
                most = subject.context - 20
                long = subject.body(prompt=[], n=8, max_tokens=most, branching=behind)
                task = await running(client, client, long)
                assert await client.delete(behind["tree"]) == 200
                status, answer = await task
                # a busy machine may delete too late
                if status != 200:
                    break
            assert status == 409 and "deleted" in answer["error"]["message"]
            await settled(client)


async def an_overrun_server_answers_or_refuses(subject: Subject) -> None:
    async def one(client: Client, seed: int) -> tuple[int, Any]:
        body = subject.body(seed=seed, n=4, max_tokens=16, branching=subject.entropy)
        return await client.ask(body)

    with subject.start(**SMALL) as url:
        # a busy server may close a connection that it takes for idle while a request is on its way
        async with Client(url, reuse=False) as client:
            answers = await asyncio.gather(*(one(client, seed) for seed in range(200)))
            assert {status for status, _ in answers} <= {200, 429, 503}
            good = [(seed, body) for seed, (status, body) in enumerate(answers) if status == 200]
            assert len(good) >= SMALL["max_running_leaves"] // 4
            assert all(len(body["choices"]) == 4 for _, body in good)
            # a crowd changes nothing in anybody's tree
            seed, crowded = good[-1]
            _, alone = await one(client, seed)
            assert [c["token_ids"] for c in alone["choices"]] == [
                c["token_ids"] for c in crowded["choices"]
            ]
            await settled(client)


async def constraints_are_honoured_or_refused(subject: Subject) -> None:
    # a tag is looked for where a token ends
    opening = subject.text(subject.greedy(subject.prompt(11, 0), 24)[:4]).rstrip()[-3:]
    choices = [[3, 5, 7], [3, 9]]
    wire = {"opening": opening, "choices": choices}
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(temperature=0, branching={"policy": "none", "constraint": wire})
            status, answer = await client.ask(body)
            if not (await client.get("/v1/trees"))["constrains"]:
                assert (status, answer["error"]["param"]) == (400, "branching.constraint")
                assert "no_constrain" in answer["error"]["message"]
                return
            assert status == 200, answer
            (node,) = nodes_of(answer)[1:]
            allowed = {int(at): ids for at, ids in node["allowed"].items()}
            start = min(allowed)
            assert subject.text(node["token_ids"][:start]).rstrip().endswith(opening)
            assert allowed[start] == [3] and allowed[start + 1] == [5, 9]
            assert node["token_ids"][start : start + 2] in ([3, 5], [3, 9])
            assert node["log_kept_mass"][start] < 0
            bad = {"opening": opening, "choices": [[1], [subject.vocab_size]]}
            body["branching"]["constraint"] = bad
            status, answer = await client.ask(body)
            assert (status, answer["error"]["param"]) == (400, "branching.constraint.choices.1")


async def a_prompt_can_be_computed_ahead(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            body = subject.body(max_tokens=0, branching={"policy": "none"})
            begun = await client.good(body)
            assert begun["choices"] == [] and begun["usage"]["completion_tokens"] == 0
            (node,) = nodes_of(begun)
            assert node["token_ids"] == body["prompt"]
            behind = {"tree": begun["branching"]["id"], "from": node["id"]}
            more = subject.body(prompt=[], n=3, temperature=0, branching=behind)
            answer = await client.good(more)
            want = subject.greedy(body["prompt"], 24)
            assert [choice["token_ids"] for choice in answer["choices"]] == [want] * 3
            assert answer["branching"]["recomputed_tokens"] <= 3 * subject.recomputed


async def pauses_end_behind_the_trigger(subject: Subject) -> None:
    with subject.start() as url:
        async with Client(url) as client:
            plain = await client.good(subject.body(branching={"policy": "none"}))
            (node,) = nodes_of(plain)[1:]
            above = sorted(node["entropies"])[-3] + 1e-3
            end = next(i for i, value in enumerate(node["entropies"]) if value > above) + 1
            pause = {"policy": "none", "pause": {"entropy_above": above}}
            answer = await client.good(subject.body(branching=pause))
            (paused,) = nodes_of(answer)[1:]
            assert paused["token_ids"] == node["token_ids"][:end]
            assert (paused["stop"], paused["trigger"]) == ("trigger", "entropy")
            assert answer["usage"]["completion_tokens"] == end
            behind = {"tree": answer["branching"]["id"], "from": paused["id"], "policy": "none"}
            rest = subject.body(prompt=[], max_tokens=24 - end, branching=behind)
            answer = await client.good(rest)
            assert answer["choices"][0]["token_ids"] == node["token_ids"][end:]


BEHAVIOUR: list[Callable[[Subject], Awaitable[None]]] = [
    a_request_without_branching_is_an_ordinary_one,
    trees_are_whole_and_billed_once,
    forks_stand_where_the_rule_says,
    greedy_leaves_equal_independent_requests,
    one_seed_gives_one_tree,
    a_stream_adds_up_to_the_whole,
    a_leaf_goes_on_behind_a_tools_answer,
    a_leaf_forks_in_its_past,
    stops_end_leaves_and_are_cut_off,
    chats_are_answered_and_continued,
    metrics_count_what_happened,
    constraints_are_honoured_or_refused,
    a_prompt_can_be_computed_ahead,
    pauses_end_behind_the_trigger,
    bad_input_names_the_field,
    bad_bodies_are_refused,
    deleted_and_expired_trees_are_gone,
    a_client_that_leaves_stops_its_leaves,
    deleting_a_running_tree_ends_its_request,
    an_overrun_server_answers_or_refuses,
]
