"""What tenants hold, in the memory of the one router. Every verb is one step: no await comes between check and take."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from serve.limits import Need, Standing, Used, refusal_error, refusals, standing
from serve.limitstore.base import HOLD_S, KEPT_S, Hold
from serve.limitstore.book import Book, Held
from serve.words import Level, Limits, Tenant

_SWEPT_EACH = 2  # accounts looked at per reservation; idle ones go, so the walk never falls behind


def wall_clock_us() -> int:
    return time.time_ns() // 1000


class _Record(NamedTuple):
    """What a hold has taken from the buckets."""

    expires_us: int
    tokens: int
    requests: int


class MemoryLimitStore:
    """For one router. `clock_us` is the wall clock: windows are of UTC."""

    def __init__(
        self, hold_s: float = HOLD_S, kept_s: float = KEPT_S, clock_us: Callable[[], int] = wall_clock_us
    ) -> None:
        self._hold_us, self._kept_us, self._clock_us = round(hold_s * 1e6), round(kept_s * 1e6), clock_us
        self._books = OrderedDict[tuple[Level, str], Book]()
        self._records = dict[str, _Record]()  # in the order of expiry
        self._settled = dict[str, int]()  # until when it is remembered
        self._seen_us = 0

    async def reserve(self, hold_id: str, tenant: Tenant, need: Need) -> Hold:
        now_us = self._now_us()
        self._sweep(now_us)
        if not tenant.limits:  # nothing is counted, so nothing is remembered
            return Hold(hold_id, tenant, need, need.output_tokens)
        if hold_id in self._settled:
            raise ValueError("a settled hold cannot be reserved again")
        levels = self._levels(tenant, now_us)
        unknown = tuple(
            level for (level, _, _), (_, book) in zip(tenant.limits, levels, strict=True) if not book.account.known
        )
        hold = Hold(hold_id, tenant, need, need.output_tokens, unknown=unknown)
        if hold_id not in self._records:
            named = [(level, limits, book.account) for (level, _, limits), (_, book) in zip(
                tenant.limits, levels, strict=True)]  # fmt: skip
            found = [r for level, limits, account in named for r in refusals(level, limits, account, need, now_us)]
            if found:
                raise refusal_error(found, self._standing(levels, now_us))
            held = Held(now_us + self._hold_us, need.tokens, need.tokens, need.cost)
            for limits, book in levels:
                book.take(hold_id, held, limits, now_us)
            self._records[hold_id] = self._record(need.tokens, 1, now_us)
        return replace(hold, standing=self._standing(levels, now_us))

    async def started(self, hold: Hold) -> None:
        hold.is_queued = False
        now_us = self._now_us()
        levels, record = self._levels(hold.tenant, now_us), self._records.pop(hold.hold_id, None)
        if record is not None:
            self._records[hold.hold_id] = self._record(record.tokens, record.requests, now_us)
            for _, book in levels:
                book.start(hold.hold_id, now_us + self._hold_us, now_us)

    async def grow(self, hold: Hold, output_tokens: int, cost: int) -> bool:
        now_us, tokens = self._now_us(), hold.need.prompt_tokens + output_tokens
        levels = self._levels(hold.tenant, now_us)
        if hold.hold_id in self._settled:
            return True
        if not hold.tenant.limits:
            hold.output_tokens, hold.cost = output_tokens, cost
            return True
        if not all(book.may_grow(hold.hold_id, limits, tokens, cost) for limits, book in levels):
            return False
        record = self._records.pop(hold.hold_id, None) or _Record(0, 0, 0)
        for limits, book in levels:
            book.fill(limits, tokens - record.tokens, 1 - record.requests, now_us)
            book.grow(hold.hold_id, Held(now_us + self._hold_us, 0, tokens, cost))
        self._records[hold.hold_id] = self._record(tokens, 1, now_us)
        hold.output_tokens, hold.cost = output_tokens, cost
        return True

    async def renew(self, holds: Sequence[Hold]) -> None:
        now_us = self._now_us()
        for hold in holds:
            levels = self._levels(hold.tenant, now_us)
            if hold.hold_id in self._settled or not levels:
                continue
            record = self._records.pop(hold.hold_id, None) or _Record(0, 0, 0)
            held = Held(now_us + self._hold_us, hold.tokens if hold.is_queued else 0, hold.tokens, hold.cost)
            for limits, book in levels:
                book.fill(limits, hold.tokens - record.tokens, 1 - record.requests, now_us)
                book.renew(hold.hold_id, held)
            self._records[hold.hold_id] = self._record(hold.tokens, 1, now_us)

    async def settle(self, hold: Hold, used: Used) -> None:
        now_us = self._now_us()
        levels = self._levels(hold.tenant, now_us)
        if hold.hold_id in self._settled or not levels:
            return
        record = self._records.pop(hold.hold_id, None) or _Record(0, 0, 0)
        for limits, book in levels:
            book.settle(hold.hold_id, used, now_us)
            book.fill(limits, used.tokens - record.tokens, used.requests - record.requests, now_us)
        self._settled[hold.hold_id] = now_us + self._kept_us

    async def restore(self, hold: Hold, level: Level, day_tokens: int, month_cost: int, at_us: int) -> None:
        levels = self._levels(hold.tenant, self._now_us())
        for (name, _, _), (_, book) in zip(hold.tenant.limits, levels, strict=True):
            if name == level:
                book.restore(day_tokens, month_cost, at_us)

    def unlearn(self) -> None:
        """Take every account for unknown: another store counted meanwhile."""
        for book in self._books.values():
            book.account.known = 0

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def __len__(self) -> int:
        """Accounts in memory."""
        return len(self._books)

    def _now_us(self) -> int:
        now_us = self._clock_us()
        if (
            by_us := self._seen_us - now_us
        ) > 0:  # the clock was set back: what is remembered must not outlast its time
            self._settled = {hold_id: until - by_us for hold_id, until in self._settled.items()}
            self._records = {i: r._replace(expires_us=r.expires_us - by_us) for i, r in self._records.items()}
        self._seen_us = now_us
        return now_us

    def _record(self, tokens: int, requests: int, now_us: int) -> _Record:
        return _Record(now_us + self._hold_us + self._kept_us, tokens, requests)

    def _levels(self, tenant: Tenant, now_us: int) -> list[tuple[Limits, Book]]:
        levels = []
        for level, account_id, limits in tenant.limits:
            book = self._books.get((level, account_id))
            if book is None:
                book = self._books[level, account_id] = Book()
            book.refresh(now_us, self._hold_us)
            levels.append((limits, book))
        return levels

    def _standing(self, levels: list[tuple[Limits, Book]], now_us: int) -> Standing:
        return standing(((limits, book.account) for limits, book in levels), now_us)

    def _sweep(self, now_us: int) -> None:
        """Forget what has no meaning any more, a little at each reservation: no call is ever long."""
        for _ in range(min(_SWEPT_EACH, len(self._books))):
            name, book = next(iter(self._books.items()))
            if book.idle(now_us):
                del self._books[name]
            else:
                self._books.move_to_end(name)
        while self._settled and next(iter(self._settled.values())) <= now_us:
            del self._settled[next(iter(self._settled))]
        while self._records and next(iter(self._records.values())).expires_us <= now_us:
            del self._records[next(iter(self._records))]
