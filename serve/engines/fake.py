"""An engine with known tokens and known times: the deterministic twin of the real one, for tests and measuring.

It repeats the prompt's token ids, over and over; token id t is the text "<t>". Choice c begins c tokens later. Stop
strings are honoured. The log-probability of token t is -t/1024, and its rivals are t+1, t+2, …
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from serve.errors import EngineLost, EngineUnavailable
from serve.words import Event, Finish, Job, Start, TokenLogprob, Usage

CACHE_BLOCK = 16  # tokens; as in vLLM, the last block of a prompt is always computed


@dataclass(slots=True)
class FakeEngine:
    """`ttft_s` and `tpot_s` are exact, without drift, counted from when a job gets a slot.

    `slots`: jobs at once, the others wait in order; None is any number. `caching`: a prompt that came before, under
    the same salt, is told as cached and its first token takes no time. `fail_after` tokens the engine dies: its
    stream breaks off. `running` holds the jobs in work.
    """

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    fail_after: int | None = None
    alive: bool = True
    slots: int | None = None
    caching: bool = False
    running: set[str] = field(default_factory=set)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    jobs: list[Job] = field(default_factory=list)
    _seen: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)
    _free: asyncio.Semaphore | None = None

    def __post_init__(self) -> None:
        self._free = None if self.slots is None else asyncio.Semaphore(self.slots)

    async def check(self) -> None:
        if not self.alive:
            raise EngineUnavailable("the engine of this model is not running; try again soon")

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        await self.check()
        self.jobs.append(job)
        self.running.add(job.job_id)
        self.began.set()
        asked = time.monotonic()
        try:
            if self._free is not None:
                await self._free.acquire()
            try:
                async for event in self._answer(job, time.monotonic() - asked):
                    yield event
            finally:
                if self._free is not None:
                    self._free.release()
        finally:
            self.running.discard(job.job_id)

    async def _answer(self, job: Job, queue_s: float) -> AsyncGenerator[Event, None]:
        cached, began = self._cached(job), time.monotonic()
        first_s = 0.0 if cached else self.ttft_s
        choices = [_Choice(job, index) for index in range(job.sampling.n)]
        made, step, begun = 0, 0, False
        while open_choices := [choice for choice in choices if not choice.finished]:
            step += 1
            due = began + first_s + (step - 1) * self.tpot_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.fail_after is not None and step > self.fail_after:
                raise EngineLost("the engine stopped while it answered")
            for choice in open_choices:
                event = choice.next()
                made += len(event.token_ids)
                if not begun:
                    event, begun = event._replace(start=_start(job, cached, queue_s)), True
                if all(c.finished for c in choices):
                    event = event._replace(usage=Usage(len(job.prompt_ids), made, cached))
                yield event

    def _cached(self, job: Job) -> int:
        """Tokens of whole blocks, but for the last, of a prompt that was seen before."""
        if not self.caching:
            return 0
        key = (job.cache_salt.reveal(), job.prompt_ids)
        known = key in self._seen
        self._seen.add(key)
        return (len(job.prompt_ids) - 1) // CACHE_BLOCK * CACHE_BLOCK if known else 0


class _Choice:
    def __init__(self, job: Job, index: int) -> None:
        self._job, self._index, self._made, self._text, self.finished = job, index, 0, "", False

    def next(self) -> Event:
        job, sampling = self._job, self._job.sampling
        if sampling.max_tokens == 0:
            self.finished = True
            return Event(self._index, (), "", "length")
        token = job.prompt_ids[(self._made + self._index) % len(job.prompt_ids)]
        self._made += 1
        piece, self._text = f"<{token}>", f"{self._text}<{token}>"
        cut = min((self._text.find(s) for s in sampling.stop if s in self._text), default=-1)
        if cut >= 0:
            piece = piece[: max(0, len(piece) - (len(self._text) - cut))]
        finish: Finish | None = "stop" if cut >= 0 else "length" if self._made == sampling.max_tokens else None
        self.finished = finish is not None
        scores = None if sampling.logprobs is None else (_score(token, sampling.logprobs),)
        return Event(self._index, (token,), piece, finish, logprobs=scores)


def _start(job: Job, cached: int, queue_s: float) -> Start:
    top, scores = job.sampling.prompt_logprobs, None
    if top is not None:
        first, *rest = job.prompt_ids
        scores = (TokenLogprob(first, None, ()), *(_score(token, top) for token in rest))
    return Start(len(job.prompt_ids), cached, queue_s, scores)


def _score(token: int, top: int) -> TokenLogprob:
    return TokenLogprob(token, -token / 1024, tuple((token + i, -(token + i) / 1024) for i in range(top)))
