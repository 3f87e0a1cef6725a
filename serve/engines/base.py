"""The seam between a request and whatever answers it: one verb."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from serve.words import Event, Job


class Engine(Protocol):
    """Something that answers jobs: vLLM in this process, vLLM behind Ray, or the fake with known times."""

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """Answer a job. The last event, and only that, has `finish` and `usage`.

        Closing the generator stops the work at once. Raises EngineUnavailable before the first event,
        EngineLost after it, BadRequest for a job that this engine cannot take.
        """
        ...

    async def check(self) -> None:
        """Return when a job sent now would be answered; raise EngineUnavailable when not."""
        ...
