"""The corridor: the whole life of a request, from top to bottom. The file to open first.

identify (in wire/) → render and count → hold limits and open the ledger's row (accounts) → dispatch in fair turn →
events → settle the holds and close the row.
The unary answer is the stream, collected: there is one path.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from serve.accounts import Accounts
from serve.answers import OUT_OF_QUOTA, Events, cut_off, echoed, together
from serve.draining import Draining
from serve.errors import EngineLost, InternalError, ServeError, UnknownModel
from serve.jobs import JobMaker, Served
from serve.record import Record
from serve.rights import may_use
from serve.settings import Caps
from serve.threads import Threads
from serve.tracing import Traces
from serve.words import Ask, Event, Job, Tenant

Observe = Callable[[Record], None]


class Corridor:
    """Answers asks. One per router process; it keeps no state between requests, but for its own end."""

    def __init__(
        self,
        served: Mapping[str, Served],
        tokenizers: Threads,
        accounts: Accounts,
        observe: Observe,
        traces: Traces,
        logprob_entries: int = Caps().logprob_entries,
    ) -> None:
        """`observe` gets one record per request when it has ended: for logs and metrics."""
        self.served, self._tokenizers, self._observe, self._traces = served, tokenizers, observe, traces
        self.accounts = accounts
        self.maker = JobMaker(tokenizers, logprob_entries)
        self.draining = Draining()

    def find(self, model: str, tenant: Tenant) -> Served:
        """A model that the tenant may not use is as unknown as one that is not there."""
        if model not in self.served or not may_use(tenant, model):
            raise UnknownModel("this server has no such model; GET /v1/models lists what it has", "model")
        return self.served[model]

    def refuse(self, record: Record, error: ServeError) -> None:
        """Record a request that came no further than the door."""
        record.outcome, record.code = error.outcome, error.code
        self.left(record)

    def left(self, record: Record) -> None:
        """Record a request whose client left before it was whole."""
        self.accounts.books.ended(record)
        self._observe(record)

    async def answer(
        self,
        ask: Ask,
        tenant: Tenant,
        record: Record,
        traceparent: str | None = None,
        head: dict[str, str] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of one ask. Whatever happens, exactly one record is told; it holds no text.

        `head` gets, before the first event, what the answer's headers should tell.
        """
        began, span, bill = time.monotonic(), self._traces.request(traceparent), None
        record.model, record.stream = ask.model, ask.stream
        try:
            self.draining.check()
            served = self.find(ask.model, tenant)
            jobs = await self.maker.jobs(ask, tenant, served, record.request_id, span.traceparent)
            _describe(record, ask, served, jobs)
            bill = await self.accounts.open(record, ask, tenant, served, jobs)
            if head is not None:
                head.update(bill.headers)
            # The fair turn is taken inside the engine replica, beside the engine that it feeds (engines/turns.py).
            prompts = ask.prompts or (None,) * len(jobs)
            streams = [await self._stream(ask, served, p, job) for p, job in zip(prompts, jobs, strict=True)]
            unfinished = set(range(len(jobs) * ask.sampling.n))
            async with self.draining.answering() as answering, aclosing(together(streams, ask.sampling.n)) as events:
                async for event in events:
                    bill.received(event)
                    _note(record, event, time.monotonic() - began)
                    unfinished -= {event.choice} if event.finish else set()
                    answering.writes()
                    yield event
                    if unfinished:
                        answering.waits()
                    if unfinished and not await bill.made(record):
                        record.code = OUT_OF_QUOTA
                        answering.writes()
                        for last in cut_off(unfinished, record):
                            yield last
                        record.outcome = "done"
                        break
            if record.outcome != "done":
                raise EngineLost("the engine ended its answer without a finish reason")
        except ServeError as e:
            record.outcome, record.code = e.outcome, e.code
            self.accounts.refused.note_body(tenant, e, ask.body_bytes)
            raise
        except Exception as e:
            record.outcome, record.code, record.error = "failed", "internal_error", type(e).__name__
            raise InternalError("something went wrong in the server; it was not your request's fault") from e
        finally:
            record.duration_s = time.monotonic() - began
            span.end(record)
            if bill is not None:
                bill.close(record)
            else:
                self.accounts.books.ended(record)
            self._observe(record)

    async def _stream(self, ask: Ask, served: Served, prompt: str | tuple[int, ...] | None, job: Job) -> Events:
        events = served.engine.generate(job)
        if not ask.echo or prompt is None:
            return events
        run, whose = self._tokenizers.run, job.share.tenant_id
        text = prompt if isinstance(prompt, str) else await run(whose, served.vocabulary.decode, prompt)
        return echoed(events, text, ask.sampling.n)


def _describe(record: Record, ask: Ask, served: Served, jobs: Sequence[Job]) -> None:
    templates = served.model.templates
    record.template = {"chat": templates.chat, "instruct": templates.instruct}.get(ask.form, "raw")
    record.adapter, record.jobs = served.adapter, len(jobs)


def _note(record: Record, event: Event, now_s: float) -> None:
    """Bring the record up to date with an event that leaves after `now_s`."""
    if record.ttft_s is None:
        record.ttft_s = now_s
    if event.start:
        record.queue_s = max(record.queue_s or 0.0, event.start.queue_s)
        record.prompt_tokens += event.start.prompt_tokens
        record.cached_tokens += event.start.cached_tokens
        record.computed_prompt_tokens = record.prompt_tokens - record.cached_tokens
        record.engine = event.start.engine or record.engine
    record.output_tokens += len(event.token_ids)
    if event.usage:
        record.outcome = "done"
