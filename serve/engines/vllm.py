"""vLLM in this process. The only file that knows vLLM's engine API (0.32).

vLLM is imported inside functions: importing it costs seconds, and the environment must be set first.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.engines import warm
from serve.engines.outputs import OutputReader
from serve.errors import BadRequest, EngineLost, EngineUnavailable
from serve.settings import Model, SettingsError, did_you_mean
from serve.starcoder import ARCHITECTURE, MODEL_CLASS, PLUGIN
from serve.starcoder.worker import EXTENSION
from serve.words import Event, Job, Sampling, Secret

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# Fields of AsyncEngineArgs that follow from other settings, or that would open a door.
OWNED = {
    "model": "source", "tokenizer": "source", "served_model_name": "name", "max_model_len": "context_tokens",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "pipeline_parallel_size": "engine.pipeline_parallel_size", "dtype": "engine.dtype",
    "max_num_seqs": "engine.max_num_seqs", "kv_cache_memory_bytes": "engine.kv_cache_gib",
    "gpu_memory_utilization": "engine.gpu_memory_utilization", "enforce_eager": "engine.enforce_eager",
    "load_format": "source (safetensors only)", "trust_remote_code": "nothing: remote code never runs",
    "hf_token": "nothing: engines load prepared folders", "revision": "source.revision",
    "enable_log_requests": "nothing: prompts are never logged",
}  # fmt: skip


def check_arguments(model: Model) -> None:
    """Compare `engine.vllm` with vLLM's own class; raises SettingsError that names the field."""
    if not model.engine.vllm:
        if find_spec("vllm") is None:  # importing it costs seconds
            raise ImportError("vllm")
        return
    prepare_environment(model)
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = sorted({f.name for f in dataclasses.fields(AsyncEngineArgs)} - OWNED.keys())
    for name in model.engine.vllm:
        where = f"models.{model.name}.engine.vllm.{name}"
        if name in OWNED:
            raise SettingsError(f"{where}: set by {OWNED[name]}, not here")
        if name not in known:
            raise SettingsError(f"{where}: vLLM has no such argument{did_you_mean(name, known)}")


def prepare_environment(model: Model) -> None:
    """What must stand in the environment before vLLM is imported."""
    settings = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
                "VLLM_ENGINE_READY_TIMEOUT_S": str(int(model.engine.start_timeout_s))}  # fmt: skip
    if model.engine.device == "cpu":
        ranks = model.engine.tensor_parallel_size * model.engine.pipeline_parallel_size
        threads = max(1, int(model.engine.cores) // ranks)
        settings |= {
            "VLLM_TARGET_DEVICE": "cpu",
            # Binding threads to cores makes two engines fight for core 0; the kernel spreads them better.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
        }
        if model.engine.enforce_eager:
            # Eager means eager: the first log-probabilities would otherwise stop the engine for some 20 s of compiling.
            settings["TORCHDYNAMO_DISABLE"] = "1"
    os.environ.update(settings)


class VllmEngine:
    """One AsyncLLM. Construct it inside a running event loop."""

    def __init__(self, model: Model, folder: Path, metrics_through_ray: bool = False) -> None:
        """`metrics_through_ray`: vLLM's own metrics go to Ray's metrics port; only inside a Ray process."""
        prepare_environment(model)
        if model.engine.device == "cpu":
            warm.begin_imports()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        if model.engine.device == "cpu":
            warm.use_warm_processes()
        arguments = AsyncEngineArgs(**_arguments(model, folder))
        self._architectures = json.loads((folder / "config.json").read_text()).get("architectures", [])
        self._llm: AsyncLLM = AsyncLLM.from_engine_args(arguments, stat_loggers=_stat_loggers(metrics_through_ray))

    @property
    def running(self) -> int:
        """Requests that vLLM has in work or waiting."""
        return int(self._llm.get_num_unfinished_requests())

    async def check(self) -> None:
        if self._llm.errored:
            raise EngineUnavailable("the engine of this model has stopped; it restarts by itself")

    def stop(self) -> None:
        self._llm.shutdown()
        del self._llm  # its destructor fails when it runs at the interpreter's end

    async def report(self) -> list[tuple[str, int]]:
        """Of every rank: the class of its model as `module:name`, and the bytes of its weights."""
        return [(str(name), int(size)) for name, size in await self._llm.collective_rpc("starserve_report")]

    async def warm_up(self) -> None:
        """Check that a StarCoder is built by our plugin on every rank; RuntimeError where it is not.

        Then compile what vLLM compiles at first use (sampling, log-probabilities), so that no client waits for it."""
        built = {name for name, _ in await self.report()}
        if ARCHITECTURE in self._architectures and built != {MODEL_CLASS}:
            raise RuntimeError(
                f"{ARCHITECTURE} was built by {', '.join(sorted(built))}, not by our plugin; let vLLM load {PLUGIN} "
                "(is starserve installed, what is VLLM_PLUGINS?)"
            )
        sampling = Sampling(max_tokens=2, temperature=1.0, top_p=0.9, seed=0, logprobs=1, prompt_logprobs=1)
        async with aclosing(self.generate(Job("warm-up", (0, 0), sampling, Secret("warm-up")))) as events:
            async for _ in events:
                pass

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt: Any = {"prompt_token_ids": list(job.prompt_ids), "cache_salt": job.cache_salt.reveal()}
        reader = OutputReader(job)
        try:
            outputs = self._llm.generate(prompt, _parameters(job.sampling), job.job_id)
            async with aclosing(outputs):
                async for output in outputs:
                    for event in reader.events(output):
                        yield event
        except EngineDeadError:
            if reader.made:
                raise EngineLost("the engine stopped while it answered") from None
            raise EngineUnavailable("the engine of this model has stopped; it restarts by itself") from None
        except (VLLMClientError, ValueError):
            # vLLM's own words may quote the prompt.
            if job.sampling.json_schema is not None:
                raise BadRequest(
                    "response_format: the engine finds no answer to this schema", "response_format"
                ) from None
            raise BadRequest("the engine refuses this request") from None


def _parameters(sampling: Sampling) -> Any:
    """vLLM's own SamplingParams."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    structured = StructuredOutputsParams(json=sampling.json_schema) if sampling.json_schema else None
    return SamplingParams(
        max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p, n=sampling.n,
        seed=sampling.seed, stop=list(sampling.stop), stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_eos, min_tokens=sampling.min_tokens, top_k=sampling.top_k, min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty, frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty, logit_bias=dict(sampling.logit_bias) or None,
        skip_special_tokens=sampling.skip_special_tokens, logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs, structured_outputs=structured,
        output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip


def _stat_loggers(metrics_through_ray: bool) -> Any:
    if not metrics_through_ray:
        return None
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]


def _arguments(model: Model, folder: Path) -> dict[str, Any]:
    engine = model.engine
    arguments: dict[str, Any] = {
        **engine.vllm,
        "model": str(folder), "load_format": "safetensors", "trust_remote_code": False,
        "served_model_name": model.name, "max_model_len": model.context_tokens, "dtype": engine.dtype,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "pipeline_parallel_size": engine.pipeline_parallel_size, "max_num_seqs": engine.max_num_seqs,
        "enforce_eager": engine.enforce_eager, "enable_log_requests": False,
    }  # fmt: skip
    # Other backends skip keywords of a schema that they do not know; free whitespace lets a model write nothing else.
    arguments.setdefault("structured_outputs_config", {"backend": "xgrammar", "disable_any_whitespace": True})
    arguments.setdefault("worker_extension_cls", EXTENSION)
    if engine.tensor_parallel_size * engine.pipeline_parallel_size > 1:
        arguments.setdefault("distributed_executor_backend", "mp")
    if engine.kv_cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = int(engine.kv_cache_gib * (1 << 30))
    if engine.device == "gpu":
        arguments["gpu_memory_utilization"] = engine.gpu_memory_utilization
    return arguments
