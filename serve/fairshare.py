"""Whose job an engine takes next: weighted fair shares of its tokens, by band. Pure: no clock, no waiting.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), with weights. Each
tenant has a counter of the service it got, divided by its weight; the waiting tenant with the lowest is next. A prompt
token costs 1 and an output token 2. The whole prompt is charged when a job is taken, what of it was cached is given
back with the first output, and every output token is charged as it is made. Somebody who comes back is lifted to the
lowest counter of those who wait: idle time earns nothing.

Bands are strict, interactive before standard before batch, but for `starvation_share`: of the service that the engine
gives while a lower band waits, it gets at least that share.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, Protocol

from serve.words import BANDS, Band

PROMPT_COST, OUTPUT_COST = 1.0, 2.0
_KEPT_IDLE = 1024  # counters of tenants with nothing to do; more are swept


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has everything."""
    squares = sum(x * x for x in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


class Claim(NamedTuple):
    """One job that wants a turn. `weight`: of its tenant; twice the weight, twice the tokens."""

    job_id: str
    tenant: str
    weight: float
    band: Band
    prompt_tokens: int
    sequences: int = 1  # places in the engine's batch
    asked_s: float = 0.0  # when it came; within a tenant, and for `fcfs`, the older goes first


class Policy(Protocol):
    """Who is next. A job is pushed, then popped or dropped; only a popped one is charged for what is made."""

    def push(self, claim: Claim) -> None: ...

    def pop(self, room: int, bands: tuple[Band, ...] = BANDS) -> Claim | None:
        """The next job that wants at most `room` sequences, of one of `bands`. None: whoever is next must wait."""
        ...

    def drop(self, job_id: str) -> bool:
        """Somebody left the queue. False: the job does not wait (any more)."""
        ...

    def cached(self, claim: Claim, tokens: int) -> None: ...

    def made(self, claim: Claim, tokens: int) -> None: ...

    def done(self, claim: Claim) -> None:
        """A popped job has ended."""
        ...


@dataclass(slots=True)
class _Line:
    """One tenant in one band."""

    served: float = 0.0  # service so far, divided by the weight
    claims: deque[Claim] = field(default_factory=deque)
    at_work: int = 0
    ticket: int = -1  # of its entry in the heap; an entry with another number is void


@dataclass(slots=True)
class _Queue:
    """One band."""

    lines: dict[str, _Line] = field(default_factory=dict)
    heap: list[tuple[float, int, str]] = field(default_factory=list)  # a counter may have grown since
    last: _Line = field(default_factory=_Line)  # whose job was taken last
    waiting: int = 0
    at_work: int = 0  # sequences
    owed: float = 0.0  # service below its starvation share, while it waits


class FairShare:
    """Policy `fair`. Deterministic: the same calls in the same order give the same turns."""

    def __init__(self, starvation_share: float = 0.05) -> None:
        self._share, self._tickets = starvation_share, count()
        self._queues: dict[Band, _Queue] = {band: _Queue() for band in BANDS}
        self._waiting = dict[str, Claim]()

    def push(self, claim: Claim) -> None:
        queue = self._queues[claim.band]
        line = queue.lines.setdefault(claim.tenant, _Line())
        if not line.claims:
            lowest = self._lowest(queue)
            line.served = max(line.served, (lowest or queue.last).served)
            self._offer(queue, claim.tenant, line)
        _insert(line.claims, claim)
        queue.waiting += 1
        self._waiting[claim.job_id] = claim

    def pop(self, room: int, bands: tuple[Band, ...] = BANDS) -> Claim | None:
        for queue in self._in_turn(bands):
            if (line := self._lowest(queue)) is None:
                continue
            claim = line.claims[0]
            if claim.sequences > room:
                return None  # it waits for room; smaller ones would starve it
            self._take(queue, line, claim)
            return claim
        return None

    def _take(self, queue: _Queue, line: _Line, claim: Claim) -> None:
        line.claims.popleft()
        del self._waiting[claim.job_id]
        queue.waiting -= 1
        queue.at_work += claim.sequences
        line.at_work += 1
        queue.last = line
        self._charge(claim, PROMPT_COST * claim.prompt_tokens)
        self._offer(queue, claim.tenant, line)

    def drop(self, job_id: str) -> bool:
        claim = self._waiting.pop(job_id, None)
        if claim is None:
            return False
        queue = self._queues[claim.band]
        queue.lines[claim.tenant].claims.remove(claim)
        queue.waiting -= 1
        return True

    def done(self, claim: Claim) -> None:
        queue = self._queues[claim.band]
        queue.at_work -= claim.sequences
        queue.lines[claim.tenant].at_work -= 1
        if len(queue.lines) > _KEPT_IDLE:
            self._sweep(queue)

    def cached(self, claim: Claim, tokens: int) -> None:
        self._charge(claim, -PROMPT_COST * tokens)
        queue = self._queues[claim.band]
        self._offer(queue, claim.tenant, queue.lines[claim.tenant])  # lower than its entry says

    def made(self, claim: Claim, tokens: int) -> None:
        self._charge(claim, OUTPUT_COST * tokens)

    def served(self, tenant: str, band: Band = "standard") -> float:
        """The tenant's counter."""
        line = self._queues[band].lines.get(tenant)
        return line.served if line else 0.0

    def _charge(self, claim: Claim, cost: float) -> None:
        self._queues[claim.band].lines[claim.tenant].served += cost / claim.weight
        for band, queue in self._queues.items():
            owed = queue.owed - cost if band == claim.band else queue.owed + self._share * cost
            queue.owed = max(0.0, owed) if queue.waiting else 0.0

    def _in_turn(self, bands: tuple[Band, ...]) -> list[_Queue]:
        """Those that wait: the starved first, then from the top.

        What a starved band is owed shrinks only while its job is answered, so it may not have many at work.
        """
        total = sum(queue.at_work for queue in self._queues.values())
        waiting = [self._queues[band] for band in bands if self._queues[band].waiting]
        starved = [q for q in waiting[1:] if q.owed > 0 and q.at_work < max(1.0, self._share * total)]
        return starved + [queue for queue in waiting if queue not in starved]

    def _offer(self, queue: _Queue, tenant: str, line: _Line) -> None:
        line.ticket = next(self._tickets)
        heapq.heappush(queue.heap, (line.served, line.ticket, tenant))

    def _lowest(self, queue: _Queue) -> _Line | None:
        """The waiting tenant with the lowest counter."""
        while queue.heap:
            served, ticket, tenant = queue.heap[0]
            line = queue.lines.get(tenant)
            if line is not None and line.ticket == ticket and line.claims and served >= line.served:
                return line
            heapq.heappop(queue.heap)
            if line is not None and line.ticket == ticket and line.claims:  # charged since: where it belongs now
                self._offer(queue, tenant, line)
        return None

    def _sweep(self, queue: _Queue) -> None:
        """Forget who is idle and would be lifted anyway."""
        floor = (self._lowest(queue) or queue.last).served
        idle = [t for t, x in queue.lines.items() if not x.claims and not x.at_work and x.served <= floor]
        for tenant in idle:
            del queue.lines[tenant]


def _insert(claims: deque[Claim], claim: Claim) -> None:
    """Nearly always at the end: only one that waited elsewhere before is older than those that are here."""
    place = len(claims)
    while place and claims[place - 1].asked_s > claim.asked_s:
        place -= 1
    claims.insert(place, claim)


class FirstCome:
    """Policy `fcfs`: in order of arrival, whoever asks."""

    def __init__(self) -> None:
        self._claims = deque[Claim]()
        self._waiting = dict[str, Claim]()

    def push(self, claim: Claim) -> None:
        _insert(self._claims, claim)
        self._waiting[claim.job_id] = claim

    def pop(self, room: int, bands: tuple[Band, ...] = BANDS) -> Claim | None:
        claim = next((c for c in self._claims if c.band in bands), None)
        if claim is None or claim.sequences > room:
            return None
        self.drop(claim.job_id)
        return claim

    def drop(self, job_id: str) -> bool:
        claim = self._waiting.pop(job_id, None)
        if claim is None:
            return False
        self._claims.remove(claim)
        return True

    def cached(self, claim: Claim, tokens: int) -> None:
        pass

    def made(self, claim: Claim, tokens: int) -> None:
        pass

    def done(self, claim: Claim) -> None:
        pass
