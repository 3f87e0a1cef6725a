"""A clock that only a test moves, tenants with limits, and stores in a Redis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from serve.errors import LimitReached
from serve.limits import Need, Used
from serve.limitstore.base import Hold, LimitStore, StoreLost
from serve.limitstore.redis import RedisLimitStore
from serve.words import Level, Limits, Secret, Tenant

NOON_US = 1_794_571_200_000_000  # 2026-11-13 12:00 UTC
_PREFIXES = count()


class Clock:
    def __init__(self) -> None:
        self.now_us = NOON_US

    def __call__(self) -> int:
        return self.now_us

    def pass_s(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)


def tenant(name: str = "acme", within: str = "", **levels: Limits) -> Tenant:
    """`key=Limits(…), tenant=…, organisation=…`; levels that are not named are not counted."""
    ids: dict[Level, str] = {"key": f"{name}-key", "tenant": name, "organisation": within}
    limits = tuple((level, account_id, levels[level]) for level, account_id in ids.items() if level in levels)
    return Tenant(name, f"{name}-key", Secret("salt"), within, limits=limits)


def need(prompt: int = 10, output: int = 10, cost: int = 0) -> Need:
    return Need(prompt, output, cost)


def redis_store(url: str, clock: Clock | None = None, timeout_s: float = 20, kept_s: float = 60) -> RedisLimitStore:
    """On a part of the server that no other store of the tests uses. Holds live 60 s."""
    prefix = f"test-{next(_PREFIXES)}"
    return RedisLimitStore(Secret(url), prefix, timeout_s, hold_s=60, kept_s=kept_s, clock_us=clock)


async def passes(
    store: LimitStore, who: Tenant, hold_id: str, prompt: int = 10, output: int = 10, cost: int = 0
) -> bool:
    try:
        await store.reserve(hold_id, who, need(prompt, output, cost))
    except LimitReached:
        return False
    return True


async def refused(store: LimitStore, who: Tenant, hold_id: str, prompt: int = 10, cost: int = 0) -> LimitReached:
    with pytest.raises(LimitReached) as error:
        await store.reserve(hold_id, who, need(prompt, 10, cost))
    return error.value


class LosingStore:
    """A store that does not answer while it is `lost`."""

    def __init__(self, store: LimitStore) -> None:
        self._store, self.lost = store, False

    def _answering(self) -> LimitStore:
        if self.lost:
            raise StoreLost
        return self._store

    async def reserve(self, hold_id: str, tenant: Tenant, need: Need) -> Hold:
        return await self._answering().reserve(hold_id, tenant, need)

    async def started(self, hold: Hold) -> None:
        await self._answering().started(hold)

    async def grow(self, hold: Hold, output_tokens: int, cost: int) -> bool:
        return await self._answering().grow(hold, output_tokens, cost)

    async def renew(self, holds: Sequence[Hold]) -> None:
        await self._answering().renew(holds)

    async def settle(self, hold: Hold, used: Used) -> None:
        await self._answering().settle(hold, used)

    async def restore(self, hold: Hold, level: Level, day_tokens: int, month_cost: int, at_us: int) -> None:
        await self._answering().restore(hold, level, day_tokens, month_cost, at_us)

    async def ping(self) -> None:
        await self._answering().ping()

    async def close(self) -> None:
        await self._store.close()
