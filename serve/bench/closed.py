"""Jobs that are all there at once, answered by an engine in this process; a run ends with its last token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import NamedTuple

from serve.engines.base import Engine
from serve.words import Job


class Timed(NamedTuple):
    """One job. Times in seconds since all were handed over."""

    queue_s: float  # from the engine's door to its first step
    first_s: float
    last_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    messages: int  # events of the engine; each carries what one step made

    @property
    def tpot_s(self) -> float:
        return (self.last_s - self.first_s) / max(1, self.output_tokens - 1)


async def answer_all(engine: Engine, jobs: Sequence[Job]) -> list[Timed]:
    """In the order of the jobs."""
    began = time.monotonic()

    async def one(job: Job) -> Timed:
        first, messages, start, usage = 0.0, 0, None, None
        async with aclosing(engine.generate(job)) as events:
            async for event in events:
                first = first or time.monotonic() - began
                messages += 1
                start, usage = start or event.start, usage or event.usage
        assert start is not None
        assert usage is not None
        last = time.monotonic() - began
        tokens = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        return Timed(start.queue_s, first, last, *tokens, messages)

    return list(await asyncio.gather(*(one(job) for job in jobs)))


def mean_batch(answers: Sequence[Timed], wall_s: float) -> float:
    """How many ran at once, on average over the run."""
    return sum(a.last_s - a.queue_s for a in answers) / wall_s
