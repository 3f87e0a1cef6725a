"""The seam between a request and whatever answers it: one verb."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from serve.words import Counted, Event, Job


class Engine(Protocol):
    """Something that answers jobs: vLLM in this process, vLLM behind Ray, or the fake with known times."""

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Answer a job. The last event, and only that, has `finish` and `usage`.

        Closing the generator stops the work at once. Raises EngineUnavailable before the first event,
        EngineLost after it, BadRequest for a job that this engine cannot take; a queue in front of one of several
        engines raises Moved (engines/moving.py) before the first event.
        """
        ...

    async def check(self) -> None:
        """Return when a job sent now would be answered; raise EngineUnavailable when not."""
        ...


class CountingEngine(Engine, Protocol):
    """An engine that can be asked, after a stream broke off, what it made of a job."""

    async def counted(self, job_ids: Sequence[str]) -> dict[str, Counted]:
        """Of those jobs that reached the engine and were not forgotten. Raises EngineUnavailable."""
        ...

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Their counts are in the ledger."""
        ...
