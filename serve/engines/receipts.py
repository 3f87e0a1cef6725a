"""An engine that remembers what it made of each job until a ledger has it: for broken streams and dead routers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from serve.engines.base import Engine
from serve.engines.moving import Moved
from serve.errors import EngineUnavailable
from serve.words import Counted, Event, Job, Usage

MOST = 100_000  # jobs remembered; beyond that the oldest is forgotten, and nobody can know it any more


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
        nothing = Usage(len(job.prompt_ids), 0, 0)
        self._keep(job.job_id, Counted(nothing, finished=False, begun=not self._queues))
        try:
            async with aclosing(self._engine.generate(job)) as events:
                async for event in events:
                    self._note(job.job_id, event)
                    yield event
        except EngineUnavailable:
            if (known := self._kept.get(job.job_id)) is not None:  # it was dead before it read the prompt
                self._kept[job.job_id] = known._replace(begun=False)
            raise
        except Moved:
            self._kept.pop(job.job_id, None)  # another's to count
            raise
        finally:
            if (known := self._kept.get(job.job_id)) is not None:
                self._kept[job.job_id] = known._replace(finished=True)

    def begin(self, job_id: str) -> None:
        """The job has its turn: from now on its prompt costs."""
        if (known := self._kept.get(job_id)) is not None:
            self._kept[job_id] = known._replace(begun=True)

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
        if (known := self._kept.get(job_id)) is None:
            return
        usage = event.usage
        if usage is None:
            prompt, made, cached = known.usage
            cached = event.start.cached_tokens if event.start else cached
            usage = Usage(prompt, made + len(event.token_ids), cached)
        self._kept[job_id] = known._replace(usage=usage)
