"""Replicas of an engine that does nothing by itself: a test says what happens to which job, and when.

Each replica is joined as the product joins it, and a router sees them as through a handle: a job that is given back is
dispatched again, and the streams of a replica that dies break. `truth` is what a bill may hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from serve.engines.assembly import assemble
from serve.engines.moving import Moved
from serve.errors import EngineLost, EngineUnavailable, ServeError
from serve.model_settings import Queue
from serve.words import NO_USAGE, Counted, Event, Finish, Job, Start, Usage


class SteppedEngine:
    """An engine that hands out one token of a job for each `step`."""

    def __init__(self, truth: dict[str, Usage]) -> None:
        """`truth`: of each job what was read, found cached and made; this engine writes into it."""
        self.truth, self.at_work = truth, dict[str, _Work]()

    async def check(self) -> None:
        pass

    def step(self, job_id: str, cached: int) -> None:
        self.at_work[job_id].said.put_nowait(cached)

    def refuse(self, job_id: str, error: ServeError) -> None:
        """Before the prompt was read. A job of which something came is not refused any more."""
        if not self.at_work[job_id].begun:
            self.truth[job_id] = NO_USAGE
            self.at_work[job_id].said.put_nowait(error)

    def fail(self, job_id: str, error: Exception) -> None:
        """After the prompt was read, and whatever was made of it so far."""
        self.at_work[job_id].said.put_nowait(error)

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        work = self.at_work[job.job_id] = _Work(job)
        self.truth[job.job_id] = Usage(len(job.prompt_ids), 0, 0)
        try:
            whole = False
            while not whole:
                said = await work.said.get()
                if isinstance(said, Exception):
                    raise said
                event = work.event(said)
                self.truth[job.job_id] = work.usage
                whole = event.usage is not None
                yield event
        finally:
            del self.at_work[job.job_id]


class _Work:
    """One job in the engine. Its choices get their tokens in turn."""

    def __init__(self, job: Job) -> None:
        self.said: asyncio.Queue[int | Exception] = asyncio.Queue()
        self._job, self.usage, self.begun = job, Usage(len(job.prompt_ids), 0, 0), False

    def event(self, cached: int) -> Event:
        prompt, made, known = self.usage
        start = None
        if not self.begun:
            known = min(cached, prompt - 1)
            self.begun, start = True, Start(prompt, known, 0.0, engine="replica")
        self.usage = Usage(prompt, made + 1, known)
        n, most = self._job.sampling.n, self._job.sampling.max_tokens or 1
        finish: Finish | None = "length" if made // n + 1 == most else None
        whole = made + 1 == n * most
        return Event(made % n, (300,), "x", finish, self.usage if whole else None, start=start)


class Replica:
    def __init__(self, queue: Queue, places: int, truth: dict[str, Usage]) -> None:
        self.engine = SteppedEngine(truth)
        self.receipts, self.turns = assemble(self.engine, queue, places, lambda tokens: None)
        self.death: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Replicas:
    """A counting engine. It chooses replicas in turn."""

    def __init__(self, queue: Queue, places: int, number: int = 2) -> None:
        self.truth = dict[str, Usage]()
        self._queue, self._places, self._chosen = queue, places, 0
        self.replicas = [Replica(queue, places, self.truth) for _ in range(number)]

    def at_work(self) -> list[tuple[SteppedEngine, str]]:
        """Jobs that an engine has, and which."""
        return [(replica.engine, job_id) for replica in self.replicas for job_id in replica.engine.at_work]

    def kill(self, number: int) -> None:
        """End a replica: what it counted is known to nobody, and another comes in its place."""
        dead = self.replicas[number]
        self.replicas[number] = Replica(self._queue, self._places, self.truth)
        for job_id, work in dead.engine.at_work.items():
            if not work.begun:  # nobody can say any more that its prompt was read
                self.truth[job_id] = NO_USAGE
        dead.death.set_result(None)

    async def check(self) -> None:
        pass

    async def counted(self, job_ids: Sequence[str]) -> dict[str, Counted]:
        found = dict[str, Counted]()
        for replica in self.replicas:
            found |= await replica.receipts.counted(job_ids)
        return found

    async def forget(self, job_ids: Sequence[str]) -> None:
        for replica in self.replicas:
            await replica.receipts.forget(job_ids)

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        while True:
            self._chosen += 1
            replica = self.replicas[self._chosen % len(self.replicas)]
            try:
                async with aclosing(_until_death(replica, job)) as events:
                    async for event in events:
                        yield event
                return
            except Moved as e:
                job = replace(job, waited_s=e.waited_s, toward=e.toward)


async def _until_death(replica: Replica, job: Job) -> AsyncGenerator[Event, None]:
    stream, started = replica.receipts.generate(job), False
    try:
        while True:
            reading = asyncio.ensure_future(anext(stream))
            reading.add_done_callback(lambda read: read.cancelled() or read.exception())  # also where nobody asks
            try:
                either: set[asyncio.Future[Any]] = {reading, replica.death}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not reading.done() or replica.death.done():
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
            if replica.death.done():
                raise EngineLost("it died") if started else EngineUnavailable("it died")
            try:
                event = reading.result()
            except StopAsyncIteration:
                return
            started = True
            yield event
    finally:
        await stream.aclose()
