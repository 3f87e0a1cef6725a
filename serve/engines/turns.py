"""A fair queue in front of an engine: whose turn it is says `serve.fairshare`, who waits for it is kept here.

Late binding: the engine is handed what it can work on at once and nothing more, so that the next job can still be
anybody's. One event loop; nothing here is shared between threads.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from serve.engines.backlog import Backlog
from serve.engines.base import Engine
from serve.engines.evenness import Evenness
from serve.engines.moving import Moved, Room
from serve.errors import Overloaded, QueueFull, QueueTimeout, ServeError
from serve.fairshare import OUTPUT_COST, PROMPT_COST, Claim, FairShare, FirstCome, Policy
from serve.model_settings import Queue
from serve.words import Event, Job

LONGEST_RETRY_S = 60  # clients that are told to wait for longer give up


@dataclass(slots=True, eq=False)
class _Waiter:
    claim: Claim
    turn: asyncio.Future[None]
    waited_s: float = 0.0  # elsewhere, before it came here
    taken: bool = False  # the engine has room for it, whether or not it knows yet
    free: bool = False  # its places were given back


def policy_of(queue: Queue) -> Policy:
    return FairShare(queue.starvation_share) if queue.policy == "fair" else FirstCome()


class Turns:
    """Engine over an engine. `places`: sequences that it works on at once. `on_turn`: told each job at its turn."""

    def __init__(
        self,
        engine: Engine,
        queue: Queue,
        places: int,
        policy: Policy | None = None,
        on_turn: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self._engine, self._queue, self._places, self._on_turn = engine, queue, places, on_turn
        self._policy = policy or policy_of(queue)
        self._backlog, self._evenness = Backlog(), Evenness()
        self._waiting = dict[str, dict[str, _Waiter]]()  # by tenant, then by job, in order of arrival
        self._waiters = 0
        self.at_work = 0  # sequences
        self.moved = 0  # jobs given back so far

    async def check(self) -> None:
        await self._engine.check()

    @property
    def waiting(self) -> int:
        """Jobs that wait for their turn."""
        return self._waiters

    def room(self) -> Room:
        return Room(0 if self._waiters else max(0, self._places - self.at_work), self._waiters)

    def give_back(self, sequences: int, toward: str | None) -> None:
        """End `generate` of those whose turn comes next, of so many sequences in all, with Moved."""
        while sequences > 0 and (claim := self._policy.pop(sequences)) is not None:
            self._policy.cached(claim, claim.prompt_tokens)  # nothing of it was served here
            self._policy.done(claim)
            waiter = self._waiting[claim.tenant][claim.job_id]
            self._out_of_line(waiter)
            sequences -= claim.sequences
            self.moved += 1
            if not waiter.turn.done():
                waiter.turn.set_exception(Moved(time.monotonic() - claim.asked_s, toward))

    @property
    def service_per_s(self) -> float | None:
        """How fast the engine works, as the fair queue counts: a prompt token 1, an output token 2. None: not known."""
        return self._backlog.speed.per_s

    def evenness(self) -> float | None:
        """Jain's index of the service by weight, since the last call, over those who waited all the time."""
        return self._evenness.close(self._waiting)

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        waiter = self._enter(job)
        claim = waiter.claim
        made, begun, whole = 0, False, False
        try:
            await self._turn(waiter)
            waited_s = time.monotonic() - claim.asked_s
            self._on_turn(job)
            async with aclosing(self._engine.generate(job)) as events:
                async for event in events:
                    if event.start:
                        begun = True
                        self._policy.cached(claim, event.start.cached_tokens)
                        self._served(claim, PROMPT_COST * (event.start.prompt_tokens - event.start.cached_tokens))
                        event = event._replace(start=event.start._replace(queue_s=event.start.queue_s + waited_s))
                    if event.token_ids:
                        made += len(event.token_ids)
                        self._policy.made(claim, len(event.token_ids))
                        self._served(claim, OUTPUT_COST * len(event.token_ids))
                    if event.usage:
                        # Its places are free, whenever the reader comes for the rest.
                        whole = True
                        self._free(waiter)
                    yield event
        finally:
            if whole:
                self._backlog.answered(made / claim.sequences)
            self._leave(waiter, begun)

    def _enter(self, job: Job) -> _Waiter:
        share = job.share
        sequences = min(job.sampling.n, self._places)
        asked_s = time.monotonic() - job.waited_s
        claim = Claim(job.job_id, share.tenant_id, share.weight, share.band, len(job.prompt_ids), sequences, asked_s)
        if not job.waited_s:  # one that was given back has been let in already
            self._make_room(claim)
        waiter = _Waiter(claim, asyncio.get_running_loop().create_future(), job.waited_s)
        if share.tenant_id not in self._waiting:
            self._evenness.content(share.tenant_id)
        self._waiting.setdefault(share.tenant_id, {})[job.job_id] = waiter
        self._waiters += 1
        self._backlog.add(claim, job.sampling.max_tokens or 1)
        self._policy.push(claim)
        self._dispatch()
        return waiter

    def _make_room(self, claim: Claim) -> None:
        """Refuse the job, or shed somebody's who has more waiting, where the queue is full."""
        own = len(self._waiting.get(claim.tenant, ()))
        if own >= self._queue.tenant_jobs:
            raise self._full(claim, f"{own} requests of yours wait for this model already")
        wait_s = self._backlog.wait_s(claim.tenant, claim.weight)
        if own and wait_s is not None and wait_s > self._queue.wait_s:
            raise self._full(claim, f"what of yours waits for this model takes {wait_s:.0f} s already")
        if self._waiters < self._queue.jobs:
            return
        longest = max(self._waiting, key=lambda tenant: len(self._waiting[tenant]))
        if len(self._waiting[longest]) <= own + 1:
            raise Overloaded("too many requests wait for this model", retry_after_s=self._retry_s(claim))
        newest = next(reversed(self._waiting[longest].values()))
        self._shed(newest, self._full(newest.claim, "others need the room in the queue, and most of it is yours"))

    def _full(self, claim: Claim, words: str) -> QueueFull:
        return QueueFull(f"{words}; try again later", retry_after_s=self._retry_s(claim))

    def _retry_s(self, claim: Claim) -> int:
        """When half of what waits is gone."""
        wait_s = self._backlog.wait_s(claim.tenant, claim.weight) or 2.0
        return max(1, min(LONGEST_RETRY_S, math.ceil(wait_s / 2)))

    def _shed(self, waiter: _Waiter, error: ServeError) -> None:
        self._forget(waiter)
        if not waiter.turn.done():
            waiter.turn.set_exception(error)

    async def _turn(self, waiter: _Waiter) -> None:
        try:
            async with asyncio.timeout(self._queue.wait_s - waiter.waited_s):
                await waiter.turn
        except TimeoutError:
            if waiter.taken:
                return  # it came in the same moment
            raise QueueTimeout(
                f"this request waited {self._queue.wait_s:g} s for its turn; try again later",
                retry_after_s=self._retry_s(waiter.claim),
            ) from None

    def _dispatch(self) -> None:
        """Give turns while there is room."""
        queue, policy = self._queue, self._policy
        while True:
            claim = policy.pop(self._places - self.at_work)
            if claim is None and queue.reserve:
                claim = policy.pop(self._places + queue.reserve - self.at_work, ("interactive",))
            if claim is None:
                return
            waiter = self._waiting[claim.tenant][claim.job_id]
            self._out_of_line(waiter)
            waiter.taken = True
            self.at_work += claim.sequences
            self._backlog.speed.begin(time.monotonic())
            if not waiter.turn.done():
                waiter.turn.set_result(None)

    def _served(self, claim: Claim, cost: float) -> None:
        self._backlog.speed.made(cost, time.monotonic())
        self._evenness.served(claim.tenant, cost, claim.weight)

    def _out_of_line(self, waiter: _Waiter) -> None:
        claim = waiter.claim
        line = self._waiting[claim.tenant]
        del line[claim.job_id]
        if not line:
            del self._waiting[claim.tenant]
            self._evenness.content(claim.tenant)
        self._waiters -= 1
        self._backlog.remove(claim)

    def _forget(self, waiter: _Waiter) -> None:
        """Out of the queue, if it is still there."""
        if not waiter.taken and self._policy.drop(waiter.claim.job_id):
            self._out_of_line(waiter)

    def _leave(self, waiter: _Waiter, begun: bool) -> None:
        if waiter.turn.done() and not waiter.turn.cancelled():
            waiter.turn.exception()  # seen, also where the client left in the moment that it was shed
        if not waiter.taken:
            self._forget(waiter)
            return
        if not begun:  # charged for a prompt of which nothing came
            self._policy.cached(waiter.claim, waiter.claim.prompt_tokens)
        self._free(waiter)

    def _free(self, waiter: _Waiter) -> None:
        if waiter.free:
            return
        waiter.free = True
        self._policy.done(waiter.claim)
        self.at_work -= waiter.claim.sequences
        if not self.at_work:
            self._backlog.speed.end()
        self._dispatch()
