"""Brings the ledger's sums into a store of limits that knows nothing of an account, until they are in.

A store knows nothing after a restart, when it lost its data, or when a clock was set and a window ended too early. It
says so at each reservation, so that what is lost on its way here is asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from serve.limitstore.base import Hold, LimitStore
from serve.words import Level, Tenant

# What the ledger knows of this day's tokens and this month's cost of a tenant's key, itself, or its organisation.
Spent = Callable[[Tenant, Level], Awaitable[tuple[int, int]]]

ONCE_MORE_S = 30.0  # after the first reading: rows of a dead router, or of others, may have come in behind it
_AT_ONCE = 2  # readings of the ledger: it has others to answer
_NOT_SOONER_S = 1.0  # after one that came in: where two clocks are days apart, a store takes none
_AGAIN_S = (0.5, 2.0, 5.0, 10.0)  # after so many that failed; the last one for ever
_AWAY_S = 0.5  # after one that failed no account is asked for


class Restorer:
    """Asks once per account at a time. No request waits for it."""

    def __init__(self, limits: LimitStore, spent: Spent, once_more_s: float = ONCE_MORE_S) -> None:
        self._limits, self._spent, self._once_more_s = limits, spent, once_more_s
        self._asked = set[tuple[Level, str]]()
        self._turn, self._away_until_s = asyncio.Semaphore(_AT_ONCE), 0.0
        self._doing = set[asyncio.Task[None]]()

    def begin(self, hold: Hold) -> None:
        """For every level of which the store knew nothing when this hold was taken."""
        for level, account_id, _ in hold.tenant.limits:
            if level in hold.unknown and (level, account_id) not in self._asked:
                self._asked.add((level, account_id))
                self._try(hold, level, account_id)

    async def quiet(self, patience_s: float = 2.0) -> None:
        """Return when nothing is under way, or after a while: a router that ends does not wait for a lost database."""
        if self._doing:
            await asyncio.wait(set(self._doing), timeout=patience_s)

    def _try(self, hold: Hold, level: Level, account_id: str, failed: int = 0, is_second: bool = False) -> None:
        task = asyncio.ensure_future(self._restore(hold, level, account_id, failed, is_second))
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _restore(self, hold: Hold, level: Level, account_id: str, failed: int, is_second: bool) -> None:
        later = asyncio.get_running_loop().call_later
        async with self._turn:
            is_restored = time.monotonic() >= self._away_until_s and await self._is_restored(hold, level)
        if not is_restored:
            again_s = _AGAIN_S[min(failed, len(_AGAIN_S) - 1)]
            later(again_s, self._try, hold, level, account_id, failed + 1, is_second)
        elif not is_second:
            later(_NOT_SOONER_S, self._asked.discard, (level, account_id))
            later(self._once_more_s, self._try, hold, level, account_id, 0, True)

    async def _is_restored(self, hold: Hold, level: Level) -> bool:
        try:
            at_us = time.time_ns() // 1000  # before the ledger is read: what it says later is of this window too
            day_tokens, month_cost = await self._spent(hold.tenant, level)
            await self._limits.restore(hold, level, day_tokens, month_cost, at_us)
        except Exception:  # the database or the store is away, which is told where it is watched
            self._away_until_s = time.monotonic() + _AWAY_S
            return False
        return True
