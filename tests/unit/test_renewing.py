"""A hold lives as long as its answer, and no longer than its router."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from serve.errors import ConcurrencyLimited
from serve.limitstore.base import Hold
from serve.limitstore.memory import MemoryLimitStore
from serve.renewing import Renewals
from serve.words import Limits
from tests.support.books import PRICED, Open
from tests.support.limit_stores import LosingStore, need, tenant

WHO = tenant(key=Limits(concurrent_requests=1))


async def test_a_hold_is_renewed_until_it_is_dropped_and_a_dead_routers_lapses() -> None:
    counted = MemoryLimitStore(hold_s=0.3)
    store = LosingStore(counted)
    renewals = Renewals(store, print)
    renewals.add(hold := await store.reserve("a", WHO, need()))
    router = asyncio.create_task(renewals.keep_renewing(0.1))
    for i in range(5):
        store.lost = i == 2  # one of three, and nearly two
        await asyncio.sleep(0.15)
        with pytest.raises(ConcurrencyLimited):
            await counted.reserve(f"{i}", WHO, need())
    router.cancel()
    await asyncio.sleep(0.35)
    await store.reserve("next", WHO, need())
    renewals.drop(hold)
    assert len(renewals) == 0


class Counting(MemoryLimitStore):
    """Notes how many holds came in each call; every third call fails."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = list[int]()

    async def renew(self, holds: Sequence[Hold]) -> None:
        self.calls.append(len(holds))
        if len(self.calls) % 3 == 0:
            raise RuntimeError
        await super().renew(holds)


async def test_thousands_of_holds_are_renewed_some_hundred_at_once_and_a_failure_ends_nothing() -> None:
    store, told, turns = Counting(), list[str](), 0
    renewals = Renewals(store, told.append)
    for i in range(1050):
        renewals.add(await store.reserve(f"{i}", tenant(f"{i}", key=Limits(tokens_per_day=10**6)), need()))
    renewals.add(Hold("unlimited", tenant("free"), need(), 10))
    router = asyncio.create_task(renewals.keep_renewing(0.01))
    while len(store.calls) < 42:
        await asyncio.sleep(0)
        turns += 1
    router.cancel()
    assert sum(store.calls[:21]) == 1050
    assert max(store.calls) == 50
    assert turns > 20  # requests come between
    assert "RuntimeError" in told[0]


async def test_answers_longer_than_a_hold_count_until_they_end(opened: Open) -> None:
    books = opened({**PRICED, "limit_store": {"hold_s": 1}}, key={"limits": Limits(concurrent_requests=1)})
    door = books.door
    door.engine.tpot_s = 0.05
    async with door.app.router.lifespan_context(door.app):
        long = asyncio.create_task(door.post("/v1/completions", max_tokens=32))
        await asyncio.sleep(1.4)  # its first token renewed it a second ago and more
        assert (await door.post("/v1/completions")).json()["error"]["code"] == "concurrency_limit"
        assert (await long).status_code == 200
        await books.accounts.quiet()
        assert (await door.post("/v1/completions", max_tokens=1)).status_code == 200
        await books.accounts.quiet()
    assert len(books.accounts.renewals) == 0
