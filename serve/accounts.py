"""What a request may cost and what it did cost: held before dispatch, metered on its way, settled when it has ended.

Charged is what engines read and made, and nothing else, job by job: a request has one per prompt. One that ended as it
should is charged what was received of it. For one that broke off, or whose client left, the engines are asked what they
counted for each job; for a job that none knows any more, what was received of it counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from serve.errors import EngineUnavailable, LimitReached
from serve.jobs import Served
from serve.lengths import Kind, Lengths
from serve.limits import NOTHING, Need, Used, grown, headers
from serve.limitstore.base import Hold, LimitStore
from serve.logs import write_line
from serve.record import Record
from serve.refused import Refused
from serve.renewing import Renewals
from serve.restoring import Restorer, Spent
from serve.words import NO_USAGE, Ask, Counted, Event, Job, Tenant, Usage

_ASKED_AGAIN_S = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)  # until an engine has stopped what was cancelled
_FORGOTTEN_EVERY_S = 2.0
_LAST_TOKENS = 8


class Books(Protocol):
    """The ledger, as the life of a request calls it. No call blocks or raises."""

    def opened(self, record: Record) -> None: ...
    def progress(self, record: Record) -> None: ...
    def ended(self, record: Record) -> bool:
        """True: what the engines counted is safe here, even should this process die now."""
        ...


class NoBooks:
    """For whoever measures an engine without serving."""

    def opened(self, record: Record) -> None: ...
    def progress(self, record: Record) -> None: ...
    def ended(self, record: Record) -> bool:
        return True


class Bill:
    """One request's. `open` it, note what is `received` and `made`, and `close` it whatever happened."""

    def __init__(self, accounts: Accounts, hold: Hold, served: Served, ask: Ask, jobs: Sequence[Job]) -> None:
        self._accounts, self._hold, self._served, self._jobs = accounts, hold, served, jobs
        self._kind = Kind(hold.tenant.tenant_id, ask.model, ask.form)
        self._n, self._choices = ask.sampling.n, len(jobs) * ask.sampling.n
        self._received = [NO_USAGE] * len(jobs)
        self._starting: asyncio.Task[None] | None = None
        self._cut = False

    @property
    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*`, as they stood when the request was let in."""
        return headers(self._hold.standing)

    def received(self, event: Event) -> None:
        """An event of the answer; choices are numbered through, job after job."""
        job = event.choice // self._n
        self._received[job] = self._received[job].after(event)

    async def made(self, record: Record) -> bool:
        """After each event. False: the day's tokens or the month's budget are used up, so end the answer."""
        self._accounts.books.progress(record)
        limits = self._accounts.limits
        if self._starting is None:  # nobody's second token waits for that
            self._starting = self._accounts.do(limits.started(self._hold))
        if (more := grown(self._hold.output_tokens, record.output_tokens)) is None:
            return True
        # Where a large step does not fit any more, small ones use up what is left.
        for step in (more, record.output_tokens + _LAST_TOKENS):
            # The cost of all prompts, also of those that are still to be read.
            cost = self._served.model.price.of(self._hold.need.prompt_tokens, record.cached_tokens, step)
            if await limits.grow(self._hold, step, cost):
                return True
        self._cut = True
        return False

    def close(self, record: Record) -> None:
        """Settle and write down; what has to be asked for, in the background."""
        self._accounts.renewals.drop(self._hold)
        if record.outcome == "done" and not self._cut:
            self._write(record)
            self._accounts.do(self._settle(record))
        else:
            self._accounts.do(self._find_out(record))

    async def _find_out(self, record: Record) -> None:
        """Of an answer that broke off: what was made of it, job by job."""
        told = await _counted(self._served, [job.job_id for job in self._jobs])
        parts = zip(self._jobs, self._received, strict=True)
        whole = Usage.total(told[job.job_id].usage if job.job_id in told else received for job, received in parts)
        prompt, made, cached = whole
        record = replace(record, prompt_tokens=prompt, output_tokens=made, cached_tokens=cached)
        self._write(record)
        await self._settle(record)

    def _write(self, record: Record) -> None:
        record.computed_prompt_tokens = record.prompt_tokens - record.cached_tokens
        record.cost = self._served.model.price.of(record.prompt_tokens, record.cached_tokens, record.output_tokens)
        if self._accounts.books.ended(record):
            self._accounts.forget_later(self._served, self._jobs)

    async def _settle(self, record: Record) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        if record.output_tokens:
            self._accounts.lengths.note(self._kind, record.output_tokens // self._choices)
        tokens = record.prompt_tokens + record.output_tokens
        used = Used(tokens, record.cost or 0) if tokens else NOTHING
        await self._accounts.limits.settle(self._hold, used)


class Accounts:
    """Of one router."""

    def __init__(
        self, limits: LimitStore, books: Books, spent: Spent | None = None, refused: Refused | None = None
    ) -> None:
        """`spent`: asked when the store knows nothing of somebody, as after a restart."""
        self.limits, self.books, self.lengths = limits, books, Lengths()
        self.refused, self.renewals = refused or Refused(), Renewals(limits, write_line)
        self._restorer = Restorer(limits, spent) if spent else None
        self._doing = set[asyncio.Task[None]]()
        self._forgotten = dict[int, tuple[Served, list[str]]]()  # by engine

    async def open(self, record: Record, ask: Ask, tenant: Tenant, served: Served, jobs: Sequence[Job]) -> Bill:
        """Hold what the jobs are expected to use, and open their row. Raises LimitReached or LimitsUnavailable."""
        kind = Kind(tenant.tenant_id, ask.model, ask.form)
        output = sum(self.lengths.expected(kind, job.sampling.max_tokens or 1) * job.sampling.n for job in jobs)
        prompt = sum(len(job.prompt_ids) for job in jobs)
        need = Need(prompt, output, served.model.price.of(prompt, 0, output))
        try:
            hold = await self.limits.reserve(record.request_id, tenant, need)
        except LimitReached as e:
            self.refused.note(tenant, e)
            raise
        self.renewals.add(hold)
        self.books.opened(record)
        if hold.unknown and self._restorer is not None:
            self._restorer.begin(hold)
        return Bill(self, hold, served, ask, jobs)

    def do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """In the background: no client waits for it."""
        task = asyncio.create_task(work)
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)
        return task

    async def quiet(self) -> None:
        """Return when all that has ended is settled and written down."""
        while self._doing:
            await asyncio.wait(set(self._doing))
        if self._restorer is not None:
            await self._restorer.quiet()

    def forget_later(self, served: Served, jobs: Sequence[Job]) -> None:
        """The ledger has them: their engine may forget them, together with others."""
        _, job_ids = self._forgotten.setdefault(id(served.engine), (served, []))
        job_ids += [job.job_id for job in jobs]

    async def keep_forgetting(self) -> None:
        """Beside the app, as long as it runs."""
        while True:
            await asyncio.sleep(_FORGOTTEN_EVERY_S)
            due, self._forgotten = self._forgotten, {}
            for served, job_ids in due.values():
                with suppress(EngineUnavailable):  # it is bounded in memory by itself
                    await served.engine.forget(job_ids)


async def _counted(served: Served, job_ids: Sequence[str]) -> dict[str, Counted]:
    """What the engines made of jobs that broke off, once they have stopped; nothing where none answers."""
    told = dict[str, Counted]()
    for pause_s in _ASKED_AGAIN_S:
        await asyncio.sleep(pause_s)
        try:
            told = await served.engine.counted(job_ids)
        except EngineUnavailable:
            return told  # what they said before is true, and may be less than they made
        if all(counted.finished for counted in told.values()):
            break
    return told
