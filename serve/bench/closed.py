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
        first, messages, usage = 0.0, 0, None
        async with aclosing(engine.generate(job)) as events:
            async for event in events:
                first = first or time.monotonic() - began
                messages += 1
                usage = usage or event.usage
        assert usage is not None
        last = time.monotonic() - began
        tokens = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        return Timed(first, last, *tokens, messages)

    return list(await asyncio.gather(*(one(job) for job in jobs)))


def mean_batch(answers: Sequence[Timed]) -> float:
    """How many were between their first and last token at once, averaged over the time from the first to the last."""
    window_s = max(a.last_s for a in answers) - min(a.first_s for a in answers)
    return sum(a.last_s - a.first_s for a in answers) / window_s if window_s else 1.0
