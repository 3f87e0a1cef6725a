"""vLLM in this process. The only file that knows vLLM's engine API (0.32).

vLLM is imported inside functions: importing it costs seconds, and the environment must be set first.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.engines import warm
from serve.engines.arguments import NO_ADAPTERS, engine_arguments, engine_environment
from serve.engines.outputs import OutputReader
from serve.errors import (
    AdapterUnavailable,
    BadRequest,
    EngineLost,
    EngineUnavailable,
    GenerationFailed,
    ServeError,
)
from serve.model_settings import Model
from serve.starcoder import ARCHITECTURE, MODEL_CLASS, PLUGIN
from serve.words import Event, Job, Sampling, Secret

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# A message costs some half of a millisecond of CPU on its way from engine to client, whatever it holds.
SHARE_S = 0.002
_FIELDS = {field.name for field in fields(Sampling)} - {"n", "json_schema"}


def pause_s(running: int, most_s: float, left_s: float = math.inf) -> float:
    """How long an answer's tokens wait to share a message: nothing for one answer, more the more there are.

    So the messages of an engine stay near 500 per second, or 50 per answer and second where there are many. `left_s`:
    when the answer will end. It waits no longer than that: whoever waits for its place would wait too.
    """
    return min((running - 1) * SHARE_S, most_s, left_s) if running > 1 else 0.0


class VllmEngine:
    """One AsyncLLM. Construct it inside a running event loop."""

    def __init__(
        self,
        model: Model,
        folder: Path,
        metrics_through_ray: bool = False,
        ranks: Mapping[str, int] = NO_ADAPTERS,
        dummy: bool = False,
    ) -> None:
        """`metrics_through_ray`: vLLM's own metrics go to Ray's metrics port; only inside a Ray process.

        `ranks`: those of the model's adapters that fit, by name, with their ranks; the others are not served.
        `dummy`: random weights in the shape of the folder's config.json, for benchmarks; answers have no text.
        """
        os.environ.update(engine_environment(model))  # this process is the engine's own
        if model.engine.device == "cpu":
            warm.begin_imports()
        with warm.without_collector():
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

        if model.engine.device == "cpu":
            warm.use_warm_processes()
        arguments = AsyncEngineArgs(**engine_arguments(model, folder, ranks, dummy))
        self._adapters = {a.name: (place, a) for place, a in enumerate(model.adapters, 1) if a.name in ranks}
        self._coalesce_s = model.engine.coalesce_ms / 1000
        self._architectures = json.loads((folder / "config.json").read_text()).get("architectures", [])
        self._llm: AsyncLLM = AsyncLLM.from_engine_args(arguments, stat_loggers=_stat_loggers(metrics_through_ray))

    @property
    def running(self) -> int:
        """Requests that vLLM has in work or waiting."""
        return int(self._llm.get_num_unfinished_requests())

    @property
    def is_dead(self) -> bool:
        """Whether vLLM says that its core is gone. Nothing else says so: no error of a request does."""
        return bool(self._llm.errored)

    async def check(self) -> None:
        if self.is_dead:
            raise EngineUnavailable("the engine of this model has stopped; it restarts by itself")

    def stop(self) -> None:
        core: Any = self._llm.engine_core
        self._llm.shutdown()
        # vLLM leaves ZeroMQ's context to the garbage collector. That may end it before its sockets, and then waits
        # for them, and this process with it, for ever.
        for socket in list(core.ctx._sockets):
            socket.close(linger=0)
        core.resources.ctx.destroy(linger=0)
        del self._llm  # its destructor fails when it runs at the interpreter's end

    async def load_adapters(self) -> dict[str, str]:
        """Load every adapter now, so that no client waits.

        Returns those that vLLM refuses, by name, with its words; they are not served.
        """
        refused = dict[str, str]()
        for name, (place, adapter) in list(self._adapters.items()):
            told = await self._llm.collective_rpc("starserve_load_adapter", args=(name, place, str(adapter.folder)))
            if reasons := [str(reason) for reason in told if reason]:
                del self._adapters[name]
                refused[name] = reasons[0]
        return refused

    def _lora(self, name: str | None) -> Any:
        """vLLM's own LoRARequest; None for the base model."""
        if name is None:
            return None
        if name not in self._adapters:
            raise AdapterUnavailable("this adapter could not be loaded; the server's log says why", "model")
        from vllm.lora.request import LoRARequest

        place, adapter = self._adapters[name]
        return LoRARequest(name, place, str(adapter.folder))

    async def report(self) -> list[str]:
        """Of every rank: the class of its model, as `module:name`."""
        return [str(name) for name in await self._llm.collective_rpc("starserve_report")]

    async def warm_up(self, any_class: bool = False) -> None:
        """Check that a StarCoder is built by our plugin on every rank; RuntimeError where it is not.

        `any_class` leaves that out, to compare with vLLM's own. Then compile what vLLM compiles at first use
        (sampling, log-probabilities), so that no client waits for it.
        """
        built = set(await self.report())
        if not any_class and ARCHITECTURE in self._architectures and built != {MODEL_CLASS}:
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
        reader, first_s = OutputReader(job), 0.0
        try:
            outputs = self._llm.generate(
                prompt, _parameters(job.sampling), job.job_id, lora_request=self._lora(job.adapter)
            )
            async with aclosing(outputs):
                async for output in outputs:
                    for event in reader.events(output):
                        yield event
                    first_s = first_s or time.monotonic()
                    left_s = reader.left_s(time.monotonic() - first_s)
                    # What vLLM makes in the meantime, it joins to one output.
                    if not output.finished and (pause := pause_s(self.running, self._coalesce_s, left_s)):
                        await asyncio.sleep(pause)
        except EngineDeadError:
            raise _dead(reader.made) from None
        except (VLLMClientError, ValueError) as e:
            raise _refused(e, job.sampling) from None
        except ServeError:
            raise
        except Exception as e:
            if self.is_dead:
                raise _dead(reader.made) from None
            raise GenerationFailed(f"the engine could not finish this answer ({type(e).__name__})") from e


def _dead(made: int) -> ServeError:
    if made:
        return EngineLost("the engine stopped while it answered")
    return EngineUnavailable("the engine of this model has stopped; it restarts by itself")


def _refused(error: Exception, sampling: Sampling) -> BadRequest:
    """What vLLM refuses before it reads the prompt. Its words may quote that, so only the field is taken of them."""
    said = str(getattr(error, "parameter", None) or error)
    field = next((word for word in re.findall(r"[a-z_]+", said) if word in _FIELDS), None)
    if field is None and sampling.json_schema is not None:
        return BadRequest("response_format: the engine finds no answer to this schema", "response_format")
    field = {"prompt_logprobs": "logprobs", None: "prompt"}.get(field, field)
    return BadRequest(f"{field}: not possible with this model, or not with the other parameters of this request", field)


def _parameters(sampling: Sampling) -> Any:
    """vLLM's own SamplingParams."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    structured = StructuredOutputsParams(json=sampling.json_schema) if sampling.json_schema else None
    return SamplingParams(
        max_tokens=1 if sampling.max_tokens == 0 else sampling.max_tokens, temperature=sampling.temperature,
        top_p=sampling.top_p, n=sampling.n, seed=sampling.seed, stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
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
