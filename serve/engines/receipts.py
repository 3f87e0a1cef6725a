"""An engine that remembers what it made of each job until a ledger has it: for broken streams and dead routers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from serve.engines.base import Engine
from serve.engines.moving import Moved
from serve.errors import EngineLost, GenerationFailed
from serve.words import NO_USAGE, Counted, Event, Job, Usage

MOST = 100_000  # jobs remembered; beyond that the oldest is forgotten, and nobody can know it any more
# These mean that the engine worked on the job. With any other error before the first event it has refused it unread.
_WORKED_ON = (EngineLost, GenerationFailed)


class Receipts:
    """Engine over an engine. What it counts is what it handed out: tokens that never left are nobody's."""

    def __init__(
        self, engine: Engine, count: Callable[[int], None] = lambda tokens: None, most: int = MOST, queues: bool = True
    ) -> None:
        """`count` gets each event's tokens. `queues`: jobs wait for their turn, and `begin` tells when it comes."""
        self._engine, self._count, self._most, self._queues = engine, count, most, queues
        self._kept = OrderedDict[str, Counted]()
        self.lost = 0  # forgotten before anybody said so
        self.output_tokens = 0  # of all jobs so far; it only grows

    async def check(self) -> None:
        await self._engine.check()

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        self._keep(job.job_id, Counted(NO_USAGE, finished=False))
        if not self._queues:
            self.begin(job)
        told = False
        try:
            async with aclosing(self._engine.generate(job)) as events:
                async for event in events:
                    told = True
                    self._note(job.job_id, event)
                    yield event
        except Moved:
            self._kept.pop(job.job_id, None)  # another's to count
            raise
        except Exception as e:
            if not told and not isinstance(e, _WORKED_ON):
                self._set(job.job_id, NO_USAGE)
            raise
        finally:
            if (known := self._kept.get(job.job_id)) is not None:
                self._kept[job.job_id] = known._replace(finished=True)

    def begin(self, job: Job) -> None:
        """The job has its turn: from now on its prompt counts, also where a client leaves before the first event."""
        self._set(job.job_id, Usage(len(job.prompt_ids), 0, 0))

    async def counted(self, job_ids: Sequence[str]) -> dict[str, Counted]:
        """Of those jobs that reached this engine, in its queue or beyond, and were not forgotten."""
        return {job_id: self._kept[job_id] for job_id in job_ids if job_id in self._kept}

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Their counts are in the ledger."""
        for job_id in job_ids:
            self._kept.pop(job_id, None)

    def _keep(self, job_id: str, counted: Counted) -> None:
        self._kept[job_id] = counted
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
            self.lost += 1

    def _note(self, job_id: str, event: Event) -> None:
        self.output_tokens += len(event.token_ids)
        self._count(len(event.token_ids))
        if (known := self._kept.get(job_id)) is not None:
            self._set(job_id, event.usage or known.usage.after(event))

    def _set(self, job_id: str, usage: Usage) -> None:
        if (known := self._kept.get(job_id)) is not None:
            self._kept[job_id] = known._replace(usage=usage)
