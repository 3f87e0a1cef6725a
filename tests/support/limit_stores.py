"""A clock that only a test moves, tenants with limits, and stores in a Redis."""

from __future__ import annotations

from itertools import count

from serve.limits import Need
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
