"""One account and the holds in it, in memory: every change that `limits.lua` makes in Redis. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from serve.limits import LONGEST_WAIT_S, MIDNIGHT_US, Account, Used, day_end_us, month_end_us, refill_us
from serve.words import Limits

_LONGEST_GAP_US = LONGEST_WAIT_S * 1_000_000  # of what is taken into a mean: a clock that was set forward is no pace
_LONGEST_MONTH_US = 31 * 86_400_000_000


class Held(NamedTuple):
    """One hold in one account. `queued`: its tokens until the first of them came."""

    expires_us: int
    queued: int
    tokens: int
    cost: int


@dataclass(slots=True)
class Book:
    """Times are of the caller; it calls `refresh` before anything else but `idle`."""

    account: Account = field(default_factory=Account)
    holds: dict[str, Held] = field(default_factory=dict)  # in the order of expiry: all live equally long

    def refresh(self, now_us: int, hold_us: int) -> None:
        """Let holds expire and windows end. `hold_us`: no hold lives longer from now on."""
        a = self.account
        if now_us < a.seen_us:
            self._go_back(a.seen_us - now_us, now_us + hold_us)
        while self.holds and self.holds[first := next(iter(self.holds))].expires_us <= now_us:
            self._remove(first)
        if (day_end := day_end_us(now_us)) != a.day_end_us:
            a.known = a.known if _ends_by_itself(a.seen_us, a.day_end_us, now_us) else 0
            a.day_tokens = 0 if a.day_end_us <= now_us else a.day_tokens
            a.day_end_us = day_end
        may_differ = now_us < a.seen_us or not now_us < a.month_end_us <= now_us + _LONGEST_MONTH_US
        if may_differ and (month_end := month_end_us(now_us)) != a.month_end_us:
            a.known = a.known if _ends_by_itself(a.seen_us, a.month_end_us, now_us) else 0
            a.month_cost = 0 if a.month_end_us <= now_us else a.month_cost
            a.month_end_us = month_end
        a.seen_us = now_us

    def _go_back(self, by_us: int, longest_us: int) -> None:
        """The clock was set back. What it said before was wrong, or is right again soon: in both cases what is kept
        must not outlast its time."""
        a = self.account
        a.requests_full_us -= by_us
        a.tokens_full_us -= by_us
        a.done_us -= by_us
        a.left_us -= by_us
        for hold_id, held in self.holds.items():
            if held.expires_us > longest_us:
                self.holds[hold_id] = held._replace(expires_us=longest_us)

    def put(self, hold_id: str, held: Held) -> None:
        a = self.account
        a.running += 1
        a.held_queued += held.queued
        a.held_tokens += held.tokens
        a.held_cost += held.cost
        self.holds[hold_id] = held

    def _remove(self, hold_id: str) -> Held | None:
        if (held := self.holds.pop(hold_id, None)) is not None:
            a = self.account
            a.running -= 1
            a.held_queued -= held.queued
            a.held_tokens -= held.tokens
            a.held_cost -= held.cost
        return held

    def take(self, hold_id: str, held: Held, limits: Limits, now_us: int) -> None:
        a = self.account
        if not a.running:
            a.done_us = now_us
        if not a.held_queued:
            a.left_us = now_us
        self.fill(limits, held.tokens, 1, now_us)
        self.put(hold_id, held)

    def fill(self, limits: Limits, tokens: int, requests: int, now_us: int) -> None:
        """Take from the buckets; less than nothing gives back."""
        a = self.account
        a.requests_full_us = _filled(a.requests_full_us, requests, limits.requests_per_minute, now_us)
        a.tokens_full_us = _filled(a.tokens_full_us, tokens, limits.tokens_per_minute, now_us)

    def leave_queue(self, held: Held | None, now_us: int) -> None:
        if held is None or not held.queued:
            return
        a = self.account
        pace = min(now_us - a.left_us, _LONGEST_GAP_US) * 1000 // held.queued
        a.left_pace_ns = _mean(a.left_pace_ns, pace)
        a.left_us = now_us

    def start(self, hold_id: str, expires_us: int, now_us: int) -> None:
        """The first token came."""
        if (held := self._remove(hold_id)) is not None:
            self.leave_queue(held, now_us)
            self.put(hold_id, held._replace(expires_us=expires_us, queued=0))

    def may_grow(self, hold_id: str, limits: Limits, tokens: int, cost: int) -> bool:
        a, held = self.account, self.holds.get(hold_id)
        others, others_cost = a.held_tokens - (held.tokens if held else 0), a.held_cost - (held.cost if held else 0)
        day, budget = limits.tokens_per_day, limits.budget_per_month
        return (day is None or a.day_tokens + others + tokens <= day) and (
            budget is None or a.month_cost + others_cost + cost <= budget
        )

    def grow(self, hold_id: str, held: Held) -> None:
        before = self._remove(hold_id)
        self.put(hold_id, held._replace(queued=before.queued if before else 0))

    def renew(self, hold_id: str, held: Held) -> None:
        """Hold so much, whatever was held; what has left the queue does not come back to it."""
        before = self._remove(hold_id)
        self.put(hold_id, held if before is None else held._replace(queued=min(held.queued, before.queued)))

    def settle(self, hold_id: str, used: Used, now_us: int) -> None:
        a, held = self.account, self._remove(hold_id)
        if held is not None:
            self.leave_queue(held, now_us)
            a.done_gap_us = _mean(a.done_gap_us, min(now_us - a.done_us, _LONGEST_GAP_US))
            a.done_us = now_us
        a.day_tokens += used.tokens
        a.month_cost += used.cost

    def restore(self, day_tokens: int, month_cost: int, at_us: int) -> None:
        a = self.account
        if (a.day_end_us, a.month_end_us) == (day_end_us(at_us), month_end_us(at_us)):
            a.day_tokens, a.month_cost = max(a.day_tokens, day_tokens), max(a.month_cost, month_cost)
            a.known = 1

    def idle(self, now_us: int) -> bool:
        """Whether nothing in it has a meaning any more. Changes nothing, needs no `refresh`."""
        a = self.account
        if now_us < a.seen_us or any(held.expires_us > now_us for held in islice(reversed(self.holds.values()), 1)):
            return False
        windows = (a.day_end_us > now_us and a.day_tokens) or (a.month_end_us > now_us and a.month_cost)
        return not windows and max(a.requests_full_us, a.tokens_full_us) <= now_us


def _filled(full_us: int, amount: int, per_minute: int | None, now_us: int) -> int:
    if not per_minute or not amount:
        return full_us
    if amount < 0:
        return full_us - refill_us(-amount, per_minute)
    return max(full_us, now_us) + refill_us(amount, per_minute)


def _mean(mean: int, sample: int) -> int:
    """A running mean over the last eight or so. Whole, and never 0 again: 0 is not known."""
    return max(1, mean + (sample - mean) // 8 if mean else sample)


def _ends_by_itself(seen_us: int, end_us: int, now_us: int) -> bool:
    return end_us - MIDNIGHT_US <= seen_us and end_us <= now_us < end_us + MIDNIGHT_US
