"""What the plugin relies on inside vLLM, checked by reading its sources: nothing is imported.

    python -m spark.engines.vllm.contract [FOLDER]

FOLDER holds an unpacked `vllm` package; by default it is the installed one.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Uses:
    """Something of vLLM's that we call, override or replace."""

    module: str
    name: str
    """A class, a function, or Class.method."""
    takes: tuple[str, ...] = ()
    """Parameters it must have, in this order among themselves."""
    mentions: tuple[str, ...] = ()
    """Identifiers that its body must contain."""
    why: str = ""


SCHEDULER, POOL = "v1/core/sched/scheduler.py", "v1/core/block_pool.py"
MANAGER, SINGLE = "v1/core/kv_cache_manager.py", "v1/core/single_type_kv_cache_manager.py"
RUNNER, RUNNER_V2 = "v1/worker/gpu_model_runner.py", "v1/worker/gpu/model_runner.py"
SAMPLER, SAMPLER_V2 = "v1/sample/sampler.py", "v1/worker/gpu/sample/sampler.py"
GRAMMARS = "v1/structured_output/__init__.py"
INPUTS, OUTPUTS = "v1/engine/input_processor.py", "v1/engine/output_processor.py"
BATCH, ARGUMENTS = "v1/worker/gpu_input_batch.py", "engine/arg_utils.py"
CORE, ENGINE = "v1/engine/core.py", "v1/engine/async_llm.py"
CLIENT = "v1/engine/core_client.py"
TRANSFER, WORKER = "distributed/weight_transfer", "v1/worker/gpu_worker.py"
ENDPOINTS = "plugins/endpoint_plugins/interface.py"
NAMED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

CONTRACT = (
    Uses(MANAGER, "KVCacheManager.get_computed_blocks", ("request",), why="names a child's blocks"),
    Uses(MANAGER, "KVCacheManager.allocate_slots", ("request",), why="makes held parents give way"),
    Uses(MANAGER, "KVCacheManager.create_kv_cache_blocks", ("blocks",), why="passes blocks on"),
    Uses(SINGLE, "SingleTypeKVCacheManager._apply_cow", why="copies the partial tail"),
    Uses(SINGLE, "SingleTypeKVCacheManager._has_partial_local_hit", why="takes a partial prefix"),
    Uses(SINGLE, "FullAttentionManager", why="tells KV from a recurrent state"),
    Uses(POOL, "BlockPool.free_blocks", ("ordered_blocks",), why="ends a hold"),
    Uses("v1/core/sched/output.py", "SchedulerOutput", mentions=("kv_cache_block_copies",)),
    Uses(SCHEDULER, "Scheduler.add_request", ("request",), why="notes a branch"),
    Uses(SCHEDULER, "Scheduler.schedule", why="lets holds expire"),
    Uses(
        SCHEDULER,
        "Scheduler.finish_requests",
        ("request_ids", "finished_status"),
        why="releases what is held",
    ),
    Uses(SCHEDULER, "Scheduler._free_request", ("request",), why="holds a finished parent"),
    Uses(SCHEDULER, "Scheduler.reset_prefix_cache", why="drops KV of old weights"),
    Uses(
        SCHEDULER,
        "Scheduler.update_from_output",
        ("scheduler_output", "model_runner_output"),
        why="takes the scores off",
    ),
    Uses("v1/core/sched/async_scheduler.py", "AsyncScheduler", why="the scheduler on a GPU"),
    Uses(
        "v1/request.py",
        "Request.__init__",
        mentions=(
            "_all_token_ids",
            "_output_token_ids",
            "num_computed_tokens",
            "num_preemptions",
            "num_prompt_tokens",
            "prefill_stats",
            "structured_output_request",
        ),
        why="counts ancestors' tokens as output",
    ),
    Uses("v1/engine/__init__.py", "EngineCoreOutput", mentions=("kv_transfer_params",)),
    Uses(
        "v1/engine/utils.py",
        "CoreEngineProcManager.monitor_engine_liveness",
        mentions=("failed_proc_name",),
        why="knows an engine that died from one that was ended",
    ),
    Uses(OUTPUTS, "OutputProcessor.process_outputs", why="reads scores"),
    Uses(OUTPUTS, "RequestState._new_completion_output"),
    Uses(INPUTS, "InputProcessor.process_inputs", why="checks a branch"),
    Uses("outputs.py", "RequestOutput.add", ("next_output", "aggregate"), why="merges scores"),
    Uses("v1/outputs.py", "LogprobsTensors", mentions=("logprob_token_ids", "logprobs")),
    Uses("v1/worker/worker_base.py", "WorkerWrapperBase.init_device", why="finds the runner"),
    Uses(ARGUMENTS, "EngineArgs.add_cli_args", ("parser",), why="adds --branching"),
    Uses(ARGUMENTS, "EngineArgs.from_cli_args", ("args",), why="reads --branching"),
    Uses(ARGUMENTS, "EngineArgs.create_engine_config", why="chooses the scheduler"),
    Uses(GRAMMARS, "StructuredOutputManager._create_grammar", ("request",), why="makes tries"),
    Uses(GRAMMARS, "StructuredOutputManager._get_reasoner", ("request",), why="finds reasoning"),
    Uses(
        GRAMMARS,
        "StructuredOutputManager.__init__",
        mentions=("executor", "enable_in_reasoning"),
        why="advances a child's grammar",
    ),
    Uses(
        "v1/structured_output/request.py",
        "StructuredOutputRequest",
        mentions=("_grammar", "reasoning_ended"),
    ),
    Uses(SAMPLER, "Sampler.forward", ("logits", "sampling_metadata"), why="is replaced"),
    Uses(SAMPLER, "Sampler.apply_logits_processors", why="penalises, biases, forbids"),
    Uses(SAMPLER, "Sampler.gather_logprobs", ("logprobs", "num_logprobs", "token_ids")),
    Uses(RUNNER, "GPUModelRunner.load_model", mentions=("model",), why="gets the sampler"),
    Uses(RUNNER, "GPUModelRunner.__init__", mentions=("kv_caches",)),
    Uses(RUNNER, "GPUModelRunner.sample_tokens", ("grammar_output",), why="passes grammars on"),
    Uses(
        RUNNER,
        "GPUModelRunner._update_states",
        mentions=("CachedRequestState", "copy_kv_cache_blocks_inplace"),
        why="makes states and copies blocks",
    ),
    Uses(
        "v1/worker/utils.py",
        "copy_kv_cache_blocks_inplace",
        ("kv_caches", "num_blocks", "kv_cache_block_copies"),
        why="copies the partial tail",
    ),
    Uses(BATCH, "CachedRequestState.__post_init__", why="splits prompts"),
    Uses(BATCH, "InputBatch.add_request", mentions=("num_tokens_no_spec",)),
    Uses(
        SAMPLER_V2,
        "Sampler.__call__",
        ("logits", "input_batch"),
        mentions=("idx_mapping_np", "positions", "logits_indices", "sample"),
        why="adds the scores",
    ),
    Uses(
        SAMPLER_V2,
        "Sampler.sample",
        ("logits", "expanded_idx_mapping"),
        mentions=("apply_sampling_params",),
        why="is replaced",
    ),
    Uses(
        SAMPLER_V2,
        "Sampler.apply_sampling_params",
        ("logits", "expanded_idx_mapping", "skip_top_k_top_p"),
        mentions=("apply_temperature", "apply_min_p"),
        why="penalises, biases, forbids",
    ),
    Uses(SAMPLER_V2, "Sampler.add_request", ("req_idx", "sampling_params")),
    Uses(
        "v1/worker/gpu/sample/states.py",
        "SamplingStates.__init__",
        mentions=("temperature", "top_k", "top_p", "min_p", "seeds", "vocab_size"),
        why="has the parameters on the device",
    ),
    Uses(
        "v1/worker/gpu/buffer_utils.py",
        "UvaBackedTensor.__init__",
        mentions=("np", "gpu"),
        why="has the parameters on both sides",
    ),
    Uses(RUNNER_V2, "GPUModelRunner.load_model", mentions=("sampler", "structured_outputs_worker")),
    Uses(RUNNER_V2, "GPUModelRunner.update_requests", mentions=("copy_kv_cache_blocks_inplace",)),
    Uses(RUNNER_V2, "GPUModelRunner.sample", mentions=("apply_grammar_bitmask",)),
    Uses(CORE, "EngineCore.collective_rpc", ("method",), why="sees that the weights are others"),
    Uses(CORE, "EngineCore.reset_prefix_cache", why="drops KV of old weights"),
    Uses(
        CLIENT,
        "AsyncMPClient.pause_scheduler_async",
        ("mode", "clear_cache"),
        why="waits for the requests in progress",
    ),
    Uses(CLIENT, "AsyncMPClient.resume_scheduler_async", why="goes on with new weights"),
    Uses(WORKER, "Worker.finish_weight_update", why="ends an update"),
    Uses(WORKER, "Worker.reload_weights", why="is another way to new weights"),
    Uses(ENGINE, "AsyncLLM.start_weight_update", why="begins an update"),
    Uses(ENGINE, "AsyncLLM.update_weights", ("request",), why="names the folder of the weights"),
    Uses(ENGINE, "AsyncLLM.finish_weight_update", why="ends an update"),
    Uses(f"{TRANSFER}/base.py", "WeightTransferEngine.receive_weights", ("update_info",)),
    Uses(
        f"{TRANSFER}/factory.py",
        "WeightTransferEngineFactory.register_engine",
        ("name", "module_path_or_cls", "class_name"),
        why="adds the way weights come by",
    ),
    Uses(
        "model_executor/model_loader/reload/layerwise.py",
        "finalize_layerwise_processing",
        mentions=("get_layerwise_info", "can_load", "load_numel", "kernel_tensors"),
        why="gives layers without new weights their old ones",
    ),
    Uses(ENDPOINTS, "EndpointPlugin.attach_router", ("app",)),
    Uses(
        ENDPOINTS,
        "EndpointPlugin.init_state",
        ("engine_client", "state", "args"),
        why="builds the trees",
    ),
)


def broken(root: Path, contract: tuple[Uses, ...] = CONTRACT) -> list[str]:
    """Return a line for each interface of the vLLM in `root` that is not as we need it.

    Example:
        ["v1/request.py: Request.__init__ no longer mentions prefill_stats (we need it: it counts
          ancestors' tokens as output)"]
    """
    trees: dict[str, ast.Module | None] = {}
    lines = []
    for uses in contract:
        if uses.module not in trees:
            path = root / uses.module
            trees[uses.module] = ast.parse(path.read_text()) if path.is_file() else None
        tree = trees[uses.module]
        fault = "the module is gone" if tree is None else _fault(tree, uses)
        if fault:
            reason = f" (we need it: it {uses.why})" if uses.why else ""
            lines.append(f"{uses.module}: {uses.name} {fault}{reason}")
    return lines


def _fault(tree: ast.Module, uses: Uses) -> str:
    """Return what is wrong with the thing in `tree`, or an empty string."""
    found: ast.AST = tree
    for part in uses.name.split("."):
        inside = {
            node.name: node for node in ast.iter_child_nodes(found) if isinstance(node, NAMED)
        }
        if part not in inside:
            return "is gone"
        found = inside[part]
    if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        has = [each.arg for each in (*found.args.args, *found.args.kwonlyargs)]
        if [name for name in has if name in uses.takes] != list(uses.takes):
            return f"takes ({', '.join(has)}), not {', '.join(uses.takes)} in this order"
    words = {node.id for node in ast.walk(found) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(found) if isinstance(node, ast.Attribute)}
    missing = [name for name in uses.mentions if name not in words]
    return f"no longer mentions {', '.join(missing)}" if missing else ""


def installed() -> Path:
    """Return the folder of the installed vLLM, which is not imported."""
    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations, "vLLM is not installed"
    return Path(next(iter(spec.submodule_search_locations)))


if __name__ == "__main__":
    faults = broken(Path(sys.argv[1]) if len(sys.argv) > 1 else installed())
    sys.exit("\n".join(["This vLLM does not fit the plugin:", *faults]) if faults else 0)
