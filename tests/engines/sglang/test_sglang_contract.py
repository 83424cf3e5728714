"""What the plugin relies on in SGLang, checked against the installed release without starting it.

When a release changes one of these, the message says which; the hooks are in `fork`, `rows`,
`scores` and `sampler` of spark/engines/sglang, the differences between releases in `versions`.
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, version
from typing import Any

import pytest

from spark.engines.sglang import plugin
from spark.engines.sglang.hooks import Hook, installed
from spark.engines.sglang.options import VARIABLE

pytestmark = pytest.mark.sglang

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
BATCH = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"
# target -> the parameters that hooks and calls of ours use, by name
CALLS = {
    f"{SCHEDULER}.handle_generate_request": ["self", "recv_req"],
    f"{SCHEDULER}._add_request_to_queue": ["self", "req", "is_retracted"],
    f"{SCHEDULER}.abort_request": ["self", "recv_req"],
    f"{SCHEDULER}.flush_cache": ["self"],
    f"{SCHEDULER}.get_new_batch_prefill": ["self", "running_batch"],
    f"{SCHEDULER}.collect_inflight_reqs": ["self"],
    f"{SCHEDULER}.init_req_max_new_tokens": ["self", "req"],
    "sglang.srt.managers.schedule_batch.Req.init_next_round_input": ["self", "tree_cache"],
    "sglang.srt.managers.schedule_batch.Req.set_finish_with_abort": ["self", "error_msg"],
    "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem": ["self"],
    "sglang.srt.mem_cache.allocation.alloc_for_extend": ["batch"],
    "sglang.srt.mem_cache.common.release_kv_cache": ["req", "tree_cache"],
    "sglang.srt.mem_cache.common.evict_from_tree_cache": ["tree_cache", "num_tokens"],
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.inc_lock_ref": ["self", "node_id"],
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.dec_lock_ref": [
        "self",
        "node_id",
        "params",
    ],
    f"{BATCH}.adjusted_from_schedule_batch": ["self", "batch", "vocab_size"],
    f"{BATCH}.adjusted_filter_batch": ["self", "keep_indices", "keep_indices_device"],
    f"{BATCH}.adjusted_merge_batch": ["self", "other"],
    f"{BATCH}.copy_for_forward": ["self"],
    f"{MANAGER}.generate_request": ["self", "obj", "request"],
    f"{MANAGER}.abort_request": ["self", "rid"],
    f"{MANAGER}.pause_generation": ["self", "obj"],
    f"{MANAGER}.update_weights_from_tensor": ["self", "obj"],
    f"{MANAGER}.continue_generation": ["self", "obj"],
    "sglang.srt.entrypoints.engine.Engine.get_all_child_pids": ["self"],
    "sglang.srt.entrypoints.engine.Engine.shutdown": ["self"],
    "sglang.srt.utils.MultiprocessingSerializer.serialize": ["obj"],
    "sglang.srt.layers.sampler.create_sampler": ["backend"],
    "sglang.srt.layers.sampler.register_sampler_backend": ["backend", "factory"],
    "sglang.srt.layers.sampler.Sampler.forward": [
        "self",
        "logits_output",
        "sampling_info",
        "return_logprob",
        "top_logprobs_nums",
        "token_ids_logprobs",
        "positions",
    ],
    "sglang.srt.layers.sampler.Sampler._preprocess_logits": ["self", "logits", "sampling_info"],
    "sglang.srt.model_executor.model_runner.ModelRunner.supports_sampling_observer": ["self"],
}


def described(target: str) -> list[str]:
    return list(inspect.signature(pkgutil.resolve_name(target)).parameters)


@pytest.mark.parametrize("target", CALLS)
def test_functions_take_what_we_pass(target: str) -> None:
    taken = described(target)
    assert [name for name in taken if name in CALLS[target]] == CALLS[target], (
        f"SGLang {version('sglang')}: {target} takes {taken}, the plugin counts on {CALLS[target]}"
    )


@pytest.mark.parametrize("hook", plugin.engine_hooks(), ids=lambda hook: hook.target)
def test_hook_targets_exist(hook: Hook) -> None:
    assert callable(pkgutil.resolve_name(hook.target)), f"SGLang {version('sglang')} lacks it"


def test_a_running_request_can_be_published() -> None:
    cache = pkgutil.resolve_name("sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache")
    request = pkgutil.resolve_name("sglang.srt.managers.schedule_batch.Req")
    if installed() >= (0, 5, 22):
        assert list(inspect.signature(cache.checkpoint).parameters)[:3] == ["self", "req", "up_to"]
        assert hasattr(request, "refresh_fill_ids")
    else:
        assert {"cache_unfinished_req"} <= set(dir(cache))
        assert {"set_extend_range", "_refresh_fill_ids"} <= set(dir(request))


def test_the_plugin_is_found() -> None:
    assert "spark" in {entry.name for entry in entry_points(group="sglang.srt.plugins")}


def test_a_missing_target_ends_the_process_with_its_name() -> None:
    code = (
        "from spark.engines.sglang.hooks import Hook, install;"
        "install([Hook('sglang.srt.mem_cache.common.no_such_thing', 'after', print)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"SGLang {version('sglang')} has no sglang.srt.mem_cache.common.no_such_thing" in (
        run.stderr
    )


def test_other_releases_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from spark.engines.sglang import hooks

    for release in ("0.5.18", "0.5.24", "0.6.0"):
        monkeypatch.setattr(hooks, "version", lambda name, release=release: release)
        with pytest.raises(SystemExit, match=f"SGLang {release} is not supported"):
            hooks.check_version()


PARSE = """
import json, os, sys
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
load_plugins()
from sglang.srt.server_args import prepare_server_args
for flags in json.loads(sys.argv[1]):
    try:
        prepare_server_args(["--model-path", "x", *flags])
        told = {"patched": sorted(HookRegistry._patched), **json.loads(os.environ["SPARK_SGLANG"])}
    except SystemExit as error:
        told = {"refused": str(error)}
    print("RESULT", json.dumps(told))
"""
REFUSED = {
    "--sampling-backend spark": "--sampling-backend spark needs --branching spark",
    "--branching spark --disable-radix-cache": "--disable-radix-cache does not go",
    "--branching spark --branching-max-leaves 0": "max_leaves=0 must be",
}
# in this order in one process, which takes a while to start
ASKED = [*REFUSED, "", "--branching spark", "--branching spark --sampling-backend pytorch"]


@pytest.fixture(scope="module")
def launched() -> dict[str, dict[str, Any]]:
    """Return flags -> what a launcher that got them has changed in itself."""
    # an engine that was started here has told its processes
    fresh = {name: value for name, value in os.environ.items() if name != VARIABLE}
    asked = json.dumps([flags.split() for flags in ASKED])
    run = subprocess.run(
        [sys.executable, "-c", PARSE, asked], env=fresh, capture_output=True, text=True, check=False
    )
    lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    told = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    assert len(told) == len(ASKED), run.stderr
    return dict(zip(ASKED, told, strict=True))


def test_branching_none_leaves_sglang_untouched(launched: dict[str, Any]) -> None:
    told = launched[""]
    assert all(".ServerArgs." in target for target in told["patched"])
    assert told["branching"] == "none"


def test_the_flag_turns_every_hook_on(launched: dict[str, Any]) -> None:
    told = launched["--branching spark"]
    assert {hook.target for hook in plugin.engine_hooks()} <= set(told["patched"])
    assert (told["branching"], told["sampler"]) == ("spark", "spark")
    assert launched["--branching spark --sampling-backend pytorch"]["sampler"] == "stock"


@pytest.mark.parametrize("flags", REFUSED)
def test_flags_that_do_not_go_together_are_refused(launched: dict[str, Any], flags: str) -> None:
    assert REFUSED[flags] in launched[flags]["refused"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"branching": "maybe"}, "branching='maybe' must be one of none, spark"),
        ({"branching": "none", "sampling_backend": "spark"}, "needs --branching spark"),
        ({"branching": "spark", "disable_radix_cache": True}, "--disable-radix-cache does not go"),
        ({"branching": "spark", "dcp_size": 2}, "--dcp-size does not go"),
    ],
)
def test_offline_settings_that_do_not_go_together_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    import sglang

    with pytest.raises(ValueError, match=message):
        sglang.Engine(model_path="nowhere", **settings)
