"""The corridor: the whole life of a request, from top to bottom. The file to open first.

identify (in wire/) → render and count → hold limits → open ledger row → dispatch in fair turn → events → settle.
The unary answer is the stream, collected: there is one path.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from serve.engines.base import Engine
from serve.errors import BadRequest, ContextOverflow, EngineLost, InternalError, ServeError, UnknownModel
from serve.prompts import Prompts
from serve.settings import Model
from serve.tokens import TokenizerPool, Vocabulary
from serve.words import Ask, Event, Job, Tenant

Log = Callable[[Mapping[str, Any]], None]
RAW_COMPLETION_TOKENS = 16  # OpenAI's default of the raw completion form


@dataclass(frozen=True, slots=True)
class Served:
    """One model as a router knows it: its settings, its words, its prompts, and the engine that answers."""

    model: Model
    vocabulary: Vocabulary
    prompts: Prompts
    engine: Engine


class Corridor:
    """Answers asks. One per router process; it keeps no state between requests."""

    def __init__(self, served: Mapping[str, Served], tokenizers: TokenizerPool, log: Log) -> None:
        self.served, self._tokenizers, self._log = served, tokenizers, log

    async def answer(self, ask: Ask, tenant: Tenant, request_id: str) -> AsyncGenerator[Event, None]:
        """The events of one ask. Whatever happens, exactly one line is logged; it holds no text."""
        began = time.monotonic()
        line: dict[str, Any] = {
            "event": "request", "id": request_id, "tenant": tenant.tenant_id, "key": tenant.key_id,
            "form": ask.form, "stream": ask.stream, "outcome": "cancelled", "output_tokens": 0,
        }  # fmt: skip
        try:
            served = self._served(ask)
            line["model"] = ask.model
            job = await self._job(ask, tenant, served)
            line["prompt_tokens"] = len(job.prompt_ids)
            # Limits: what this job may cost is held here, and settled in `finally` (tenancy issue).
            # Ledger: the row is opened here, before dispatch, and closed in `finally` (tenancy issue).
            # Fair turn: taken inside the engine replica, beside the engine that it feeds (tenancy issue).
            async with aclosing(served.engine.generate(job)) as events:
                async for event in events:
                    line.setdefault("ttft_s", round(time.monotonic() - began, 4))
                    line["output_tokens"] += len(event.token_ids)
                    if event.finish:
                        line["outcome"] = "done"
                    yield event
            if line["outcome"] != "done":
                raise EngineLost("the engine ended its answer without a finish reason")
        except ServeError as e:
            line |= {"outcome": e.outcome, "code": e.code}
            raise
        except Exception as e:
            line |= {"outcome": "failed", "code": "internal_error", "error": type(e).__name__}
            raise InternalError("something went wrong in the server; it was not your request's fault") from e
        finally:
            self._log({**line, "duration_s": round(time.monotonic() - began, 4)})

    def _served(self, ask: Ask) -> Served:
        if ask.model not in self.served:
            raise UnknownModel("this server has no such model; GET /v1/models lists what it has", "model")
        return self.served[ask.model]

    async def _job(self, ask: Ask, tenant: Tenant, served: Served) -> Job:
        no_stops: tuple[str, ...] = ()
        sampling, defaults = ask.sampling, served.model.defaults
        field = {"completion": "prompt", "instruct": "instruction", "chat": "messages"}[ask.form]
        if isinstance(ask.prompt, tuple):
            ids, stops = ask.prompt, no_stops
            if any(not 0 <= i < served.vocabulary.size for i in ids):
                raise BadRequest(f"prompt: token ids must lie in 0…{served.vocabulary.size - 1}", "prompt")
        else:
            rendered = served.prompts.render(ask)
            ids, stops = await self._tokenizers.encode(served.vocabulary, rendered), rendered.stops
        if not ids:
            raise BadRequest(f"{field} is empty", field)
        return Job(
            job_id=f"{ask.form}-{secrets.token_hex(12)}",
            prompt_ids=ids,
            max_tokens=_max_tokens(ask, len(ids), served.model.context_tokens, field),
            temperature=defaults.temperature if sampling.temperature is None else sampling.temperature,
            top_p=defaults.top_p if sampling.top_p is None else sampling.top_p,
            seed=sampling.seed,
            stop=tuple(dict.fromkeys(sampling.stop + stops)),
            cache_salt=tenant.cache_salt,
        )


async def collect(events: AsyncGenerator[Event, None]) -> Event:
    """The unary answer: the stream, joined into one event."""
    async with aclosing(events):
        pieces = [event async for event in events]
    return pieces[-1]._replace(
        token_ids=tuple(i for piece in pieces for i in piece.token_ids), text="".join(piece.text for piece in pieces)
    )


def _max_tokens(ask: Ask, prompt: int, context: int, field: str) -> int:
    """What was asked for; by default what fits, and 16 on the raw form. Nothing is cut silently."""
    room, wanted = context - prompt, ask.sampling.max_tokens
    if room < 1:
        raise ContextOverflow(
            f"{field} has {prompt} tokens; this model's context is {context} tokens, and at least 1 must be left "
            "for the answer", field,
        )  # fmt: skip
    if wanted is None:
        return min(room, RAW_COMPLETION_TOKENS) if ask.form == "completion" else room
    if wanted > room:
        raise ContextOverflow(
            f"{field} has {prompt} tokens and max_tokens is {wanted}; together they exceed this model's context of "
            f"{context} tokens", "max_tokens",
        )  # fmt: skip
    return wanted
