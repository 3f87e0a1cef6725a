"""An engine with known tokens and known times: the deterministic twin of the real one, for tests and measuring.

It repeats the prompt's token ids, over and over; token id t is the text "<t>". Stop strings are honoured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from serve.errors import EngineLost, EngineUnavailable
from serve.words import Event, Finish, Job, Usage


@dataclass(slots=True)
class FakeEngine:
    """`ttft_s` and `tpot_s` are exact; `fail_after` tokens the engine dies; `running` holds the jobs in work."""

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    fail_after: int | None = None
    alive: bool = True
    running: set[str] = field(default_factory=set)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    jobs: list[Job] = field(default_factory=list)

    async def check(self) -> None:
        if not self.alive:
            raise EngineUnavailable("the engine of this model is not running; try again soon")

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        await self.check()
        self.jobs.append(job)
        self.running.add(job.job_id)
        self.began.set()
        try:
            text = ""
            for made in range(1, job.max_tokens + 1):
                await asyncio.sleep(self.ttft_s if made == 1 else self.tpot_s)
                if self.fail_after is not None and made > self.fail_after:
                    raise EngineLost("the engine stopped while it answered")
                token = job.prompt_ids[(made - 1) % len(job.prompt_ids)]
                piece, text = f"<{token}>", f"{text}<{token}>"
                cut = min((text.find(s) for s in job.stop if s in text), default=-1)
                if cut >= 0:
                    piece = piece[: max(0, len(piece) - (len(text) - cut))]
                finish: Finish | None = "stop" if cut >= 0 else "length" if made == job.max_tokens else None
                usage = Usage(len(job.prompt_ids), made, 0) if finish else None
                yield Event(0, (token,), piece, finish, usage)
                if finish:
                    return
        finally:
            self.running.discard(job.job_id)
