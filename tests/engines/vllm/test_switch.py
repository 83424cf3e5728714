"""The switch: without it vLLM is vLLM; with it what cannot be combined is refused."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import pytest
from harness import Harness
from models import prompt
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.sample.sampler import Sampler

from spark.engines.vllm.options import Options, add_flags, from_flags, options
from spark.rollout.chat import APPEND_ONLY
from spark.serve.vllm.launch import command_line

pytestmark = pytest.mark.vllm


def runner(harness: Harness) -> Any:
    executor = harness.core.model_executor
    return executor.driver_worker.worker.model_runner


def test_without_the_flag_vllm_is_untouched(engines: Any) -> None:
    """The very classes of vLLM run, and their outputs are those of greedy decoding with Spark."""
    plain, ours = engines(branching={}), engines()
    assert type(plain.scheduler) is Scheduler
    assert type(runner(plain)).__module__.startswith("vllm.")
    assert type(runner(plain).sampler) is Sampler
    assert type(runner(ours).sampler) is not Sampler
    prompts = [{"prompt_token_ids": prompt(20 + index, index)} for index in range(12)]
    greedy = SamplingParams(temperature=0, max_tokens=24, logprobs=2)
    seeded = SamplingParams(temperature=1.0, max_tokens=24, seed=3)
    found = [
        [
            [(c.token_ids, c.logprobs) for out in outputs for c in out.outputs]
            for outputs in (
                harness.llm.generate(prompts, greedy, use_tqdm=False),
                harness.llm.generate(prompts, seeded, use_tqdm=False),
            )
        ]
        for harness in (plain, ours)
    ]
    assert [tokens for tokens, _ in found[0][0]] == [tokens for tokens, _ in found[1][0]]
    for (_, theirs), (_, mine) in zip(found[0][0], found[1][0], strict=True):
        for a, b in zip(theirs, mine, strict=True):
            assert a.keys() == b.keys()
            assert all(abs(a[t].logprob - b[t].logprob) < 1e-5 for t in a)
    # the same seed is another stream of numbers in another sampler
    assert found[0][1] != found[1][1]


HOOKED = """
import sys
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
EngineArgs(sys.argv[1], max_model_len=256).create_engine_config()
from spark.engines.vllm.hooks import MARK
modules = [module for name, module in list(sys.modules.items()) if name.startswith("vllm")]
classes = {c for module in modules for c in list(vars(module).values()) if isinstance(c, type)}
found = [
    f"{c.__name__}.{name}"
    for c in classes
    for name, method in list(vars(c).items())
    if hasattr(getattr(method, "__func__", method), MARK)
]
found += [name for name in sys.modules if name.startswith("spark.engines.vllm.")]
print(*found)
"""


def test_without_the_flag_nothing_is_hooked_that_runs_per_token(models: Any) -> None:
    """In a fresh process: an engine without branching costs what it costs without the plugin."""
    command = [sys.executable, "-c", HOOKED, str(models("qwen3"))]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ours = {"branch", "frontend", "hooks", "options", "plugin", "scores"}
    assert set(told.splitlines()[-1].split()) == {f"spark.engines.vllm.{name}" for name in ours} | {
        "EngineArgs.add_cli_args",
        "EngineArgs.create_engine_config",
        "EngineArgs.from_cli_args",
        # asked for weights and the like, never for a token
        "EngineCore.collective_rpc",
        "InputProcessor.process_inputs",
        "WorkerWrapperBase.init_device",
    }


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"enable_prefix_caching": False}, "prefix caching"),
        ({"scheduler_cls": Scheduler}, "--scheduler-cls"),
        (
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            "speculative decoding",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(models: Any, wrong: dict, told: str) -> None:
    switch = {"branching": "spark"}
    arguments = EngineArgs(
        str(models("qwen3")), max_model_len=256, additional_config=switch, **wrong
    )
    with pytest.raises(ValueError, match=told):
        arguments.create_engine_config()


def test_flags_become_options() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert from_flags(parser.parse_args([])) == {}
    told = ["--branching", "spark", "--branching-sampler", "stock", "--branching-weight-updates"]
    told += ["--branching-hold-seconds", "7.5", "--branching-limits", '{"max_leaves": 3}']
    config = argparse.Namespace(additional_config=from_flags(parser.parse_args(told)))
    assert options(config) == Options(
        branching="spark",
        branching_sampler="stock",
        branching_hold_seconds=7.5,
        branching_limits={"max_leaves": 3},
        branching_weight_updates=True,
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"branching": "sprak"}, "branching='sprak'"),
        ({"branching": "spark", "branching_sampler": "fast"}, "branching_sampler='fast'"),
        ({"branching": "spark", "branching_hold_seconds": -1.0}, "branching_hold_seconds=-1.0"),
        ({"branching": "spark", "branching_seconds": 3}, "branching_seconds"),
    ],
)
def test_bad_options_are_named(given: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        options(argparse.Namespace(additional_config=given))


def test_spark_serve_becomes_vllm_serve() -> None:
    told = ["M", "--max_leaves", "8", "--idle_seconds=2.5", "--weight_updates", "--port", "80"]
    assert command_line(told) == [
        *("serve", "M", "--branching-weight-updates", "--port", "80", "--branching", "spark"),
        *("--branching-limits", '{"max_leaves": 8, "idle_seconds": 2.5}'),
        *("--host", "127.0.0.1"),
    ]
    given = ["M", "--branching=none", "--host=::"]
    assert command_line(given) == ["serve", *given]
    told = command_line(["M", "--chat_template", "append_only", "--uds", "/tmp/s"])
    assert told[2:4] == ["--chat-template", APPEND_ONLY] and "--host" not in told
