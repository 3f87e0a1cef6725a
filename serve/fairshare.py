"""Whose job an engine takes next: weighted fair shares of its tokens, by band. Pure: no clock, no waiting.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), with weights. Each
tenant has a counter of the service it got, divided by its weight; the waiting tenant with the lowest is next. A prompt
token costs 1 and an output token 2. The whole prompt is charged when a job is taken, what of it was cached is given
back with the first output, and every output token is charged as it is made. Somebody who comes back is lifted to the
lowest counter of those who wait: idle time earns nothing.

Bands are strict, interactive before standard before batch, but for `starvation_share`: of the service that the engine
gives while a lower band waits, it gets that share, and more only from places that no higher band wants. A band is
owed its share of all service while it waits. When a job is taken ahead of its turn, while a higher band waits, its
band pays with all that the job costs; what its answer will cost is foreseen from the band's answers so far, and put
right as it is made. A band that got too much owes it, until its share has made up for it, whether or not it has jobs
meanwhile. It owes nothing for what it got while no higher band waited, and an idle band is owed nothing. Both sums
end at `MOST_OWED`: a band that waits gets a turn at the latest after service of MOST_OWED / share, and no burst ahead
of its turn is larger than that and one job.
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
MOST_OWED = 65_536.0  # service: a prompt of as many tokens, or an answer of half as many
_USUAL_OUTPUT = 64.0  # tokens of an answer, until a band's answers are known
_SHARE_OF_NEW = 0.1  # of the newest answer in the mean length
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
    owed: float = 0.0  # service below its starvation share; negative: got ahead of its turn
    output_cost: float = OUTPUT_COST * _USUAL_OUTPUT  # of one sequence's answer, a running mean

    def lift(self, service: float) -> None:
        """Owe the band more. Unless it waits, this only makes up for what it got ahead of its turn."""
        if self.waiting:
            self.owed = min(self.owed + service, MOST_OWED)
        elif self.owed < 0:
            self.owed = min(self.owed + service, 0.0)

    def pay(self, service: float) -> float:
        """Take from what the band is owed; returns how much that was."""
        paid = min(service, self.owed + MOST_OWED)
        self.owed -= paid
        return paid


@dataclass(slots=True)
class _Running:
    """A job that was taken. `ahead`: of its turn, while a higher band waited, so that its band pays for it."""

    ahead: bool
    foreseen: float  # cost of its answer that is not made yet
    made: float = 0.0  # cost of its answer so far
    paid: float = 0.0


class FairShare:
    """Policy `fair`. Deterministic: the same calls in the same order give the same turns."""

    def __init__(self, starvation_share: float = 0.05) -> None:
        self._share, self._tickets = starvation_share, count()
        self._queues: dict[Band, _Queue] = {band: _Queue() for band in BANDS}
        self._waiting = dict[str, Claim]()
        self._running = dict[str, _Running]()

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
        line.at_work += 1
        queue.last = line
        ahead = any(self._queues[band].waiting for band in BANDS[: BANDS.index(claim.band)])
        running = self._running[claim.job_id] = _Running(ahead, queue.output_cost * claim.sequences)
        self._pay(queue, running, running.foreseen)
        self._charge(claim, PROMPT_COST * claim.prompt_tokens)
        self._wait_no_more(queue)
        self._offer(queue, claim.tenant, line)

    def drop(self, job_id: str) -> bool:
        claim = self._waiting.pop(job_id, None)
        if claim is None:
            return False
        queue = self._queues[claim.band]
        queue.lines[claim.tenant].claims.remove(claim)
        self._wait_no_more(queue)
        return True

    def _wait_no_more(self, queue: _Queue) -> None:
        """One job fewer waits. A band without any is owed nothing."""
        queue.waiting -= 1
        if not queue.waiting:
            queue.owed = min(queue.owed, 0.0)

    def done(self, claim: Claim) -> None:
        queue, running = self._queues[claim.band], self._running.pop(claim.job_id)
        queue.lines[claim.tenant].at_work -= 1
        self._pay(queue, running, -running.foreseen)
        if running.made:
            queue.output_cost += _SHARE_OF_NEW * (running.made / claim.sequences - queue.output_cost)
        if len(queue.lines) > _KEPT_IDLE:
            self._sweep(queue)

    def cached(self, claim: Claim, tokens: int) -> None:
        self._charge(claim, -PROMPT_COST * tokens)
        queue = self._queues[claim.band]
        self._offer(queue, claim.tenant, queue.lines[claim.tenant])  # lower than its entry says

    def made(self, claim: Claim, tokens: int) -> None:
        cost, running = OUTPUT_COST * tokens, self._running[claim.job_id]
        foreseen = min(cost, running.foreseen)
        running.foreseen -= foreseen
        running.made += cost
        self._charge(claim, cost, foreseen)

    def served(self, tenant: str, band: Band = "standard") -> float:
        """The tenant's counter."""
        line = self._queues[band].lines.get(tenant)
        return line.served if line else 0.0

    def _charge(self, claim: Claim, cost: float, foreseen: float = 0.0) -> None:
        """Count service to the tenant and to the bands. `foreseen`: of it, what was paid for when the job was taken."""
        own = self._queues[claim.band]
        own.lines[claim.tenant].served += cost / claim.weight
        for queue in self._queues.values():
            queue.lift(self._share * cost)
        running = self._running[claim.job_id]
        self._pay(own, running, cost - foreseen)
        if not running.ahead and own.owed > 0 and cost > 0:  # it gets what it is owed; more than that costs it nothing
            own.owed = max(0.0, own.owed - cost)

    def _pay(self, queue: _Queue, running: _Running, service: float) -> None:
        """The band pays for a job ahead of its turn; where that is less than nothing, it gets back what it paid."""
        if running.ahead and service > 0:
            running.paid += queue.pay(service)
        elif running.ahead:
            back = min(-service, running.paid)
            running.paid -= back
            queue.lift(back)

    def _in_turn(self, bands: tuple[Band, ...]) -> list[_Queue]:
        """Those that wait: the starved first, then from the top."""
        waiting = [self._queues[band] for band in bands if self._queues[band].waiting]
        starved = [queue for queue in waiting[1:] if queue.owed > 0]
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
