"""Settings to vLLM's arguments and environment (0.32).

vLLM is imported inside functions: importing it costs seconds, and the environment must be set first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve.model_settings import Model
from serve.settings import SettingsError, did_you_mean
from serve.starcoder.worker import EXTENSION

NO_ADAPTERS: Mapping[str, int] = {}
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's slots
ADAPTERS_AT_ONCE = 8  # adapters in one batch; more take turns, because each slot costs memory
# Fields of AsyncEngineArgs that follow from other settings, or that would open a door.
OWNED = {
    "model": "source", "tokenizer": "source", "served_model_name": "name", "max_model_len": "context_tokens",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "pipeline_parallel_size": "engine.pipeline_parallel_size", "dtype": "engine.dtype",
    "max_num_seqs": "engine.max_num_seqs", "kv_cache_memory_bytes": "engine.kv_cache_gib",
    "gpu_memory_utilization": "engine.gpu_memory_utilization", "enforce_eager": "engine.enforce_eager",
    "load_format": "source (safetensors only)", "trust_remote_code": "nothing: remote code never runs",
    "hf_token": "nothing: engines load prepared folders", "revision": "source.revision",
    "speculative_config": "engine.ngram_tokens", "enable_lora": "adapters",
    "max_lora_rank": "adapters", "max_cpu_loras": "adapters", "lora_modules": "adapters",
    "enable_log_requests": "nothing: prompts are never logged",
}  # fmt: skip


def check_arguments(model: Model) -> None:
    """Compare `engine.vllm` with vLLM's own class; raises SettingsError that names the field."""
    if not model.engine.vllm:
        if find_spec("vllm") is None:  # importing it costs seconds
            raise ImportError("vllm")
        return
    if owned := OWNED.keys() & model.engine.vllm.keys():
        name = min(owned)
        raise SettingsError(f"models.{model.name}.engine.vllm.{name}: set by {OWNED[name]}, not here")
    known = sorted(set(_fields_of_vllm(tuple(engine_environment(model).items()))) - OWNED.keys())
    for name in sorted(model.engine.vllm.keys() - set(known)):
        where = f"models.{model.name}.engine.vllm.{name}"
        raise SettingsError(f"{where}: vLLM has no such argument{did_you_mean(name, known)}")


@cache
def _fields_of_vllm(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """Of AsyncEngineArgs, as a process of its own sees them.

    Importing vLLM wants variables in the environment and leaves others there, and a process that checks a configuration
    may start the engines of other models afterwards.
    """
    ask = "import dataclasses as d, vllm.engine.arg_utils as v; print(*(f.name for f in d.fields(v.AsyncEngineArgs)))"
    done = subprocess.run(
        [sys.executable, "-c", ask], env={**os.environ, **dict(environment)}, capture_output=True, text=True
    )
    if done.returncode:
        raise ImportError("vllm")
    return tuple(done.stdout.splitlines()[-1].split())


def engine_environment(model: Model) -> dict[str, str]:
    """What must stand in the environment of the engine's process, and there alone, before vLLM is imported."""
    settings = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
                "VLLM_ENGINE_READY_TIMEOUT_S": str(int(model.engine.start_timeout_s))}  # fmt: skip
    if model.engine.device == "cpu":
        threads = max(1, int(model.engine.cores) // model.engine.ranks)
        settings |= {
            "VLLM_TARGET_DEVICE": "cpu",
            # Binding threads to cores makes two engines fight for core 0; the kernel spreads them better.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
        }
        if model.engine.enforce_eager:
            # Eager means eager: the first log-probabilities would otherwise stop the engine for some 20 s of compiling.
            settings["TORCHDYNAMO_DISABLE"] = "1"
    return settings


def engine_arguments(model: Model, folder: Path, ranks: Mapping[str, int], dummy: bool) -> dict[str, Any]:
    """`dummy`: random weights, and no tokenizer; the folder holds a config.json alone."""
    engine = model.engine
    arguments: dict[str, Any] = {
        **engine.vllm,
        "model": str(folder), "load_format": "safetensors", "trust_remote_code": False,
        "served_model_name": model.name, "max_model_len": model.context_tokens, "dtype": engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "max_num_seqs": engine.max_num_seqs + engine.queue.reserve,
        "enforce_eager": engine.enforce_eager, "enable_log_requests": False,
    }  # fmt: skip
    # Other backends skip keywords of a schema that they do not know; free whitespace lets a model write nothing else.
    arguments.setdefault("structured_outputs_config", {"backend": "xgrammar", "disable_any_whitespace": True})
    arguments.setdefault("worker_extension_cls", EXTENSION)
    if engine.ranks > 1:
        arguments.setdefault("distributed_executor_backend", "mp")
    if ranks:
        arguments |= {"enable_lora": True, "max_lora_rank": next(r for r in LORA_RANKS if r >= max(ranks.values()))}
        arguments.setdefault("max_loras", min(len(ranks), ADAPTERS_AT_ONCE))
        if engine.device == "cpu":
            # vLLM's CPU kernels take slot -1, the last one, for requests without an adapter: it must stay empty, or
            # the base answers with somebody's adapter whenever both are in one batch.
            arguments["max_loras"] = len(ranks) + 1
        arguments["max_cpu_loras"] = max(len(ranks), arguments["max_loras"])
    if engine.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * (1 << 30))
    if engine.ngram_tokens is not None:
        guess = {"method": "ngram", "num_speculative_tokens": engine.ngram_tokens, "prompt_lookup_max": 4}
        arguments["speculative_config"] = guess
    if dummy:
        arguments |= {"load_format": "dummy", "skip_tokenizer_init": True}
    if engine.device == "gpu":
        arguments["gpu_memory_utilization"] = engine.gpu_memory_utilization
    return arguments
