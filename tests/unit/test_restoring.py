"""The ledger's sums come into a store that knows nothing, whatever is lost on the way, and are asked once at a time."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from serve.errors import QuotaExhausted
from serve.limits import Used
from serve.limitstore.memory import MemoryLimitStore
from serve.restoring import Restorer
from serve.words import Level, Limits, Tenant
from tests.support.limit_stores import LosingStore, need, tenant

WHO = tenant("acme", "org", key=Limits(tokens_per_day=100), organisation=Limits(tokens_per_day=1000))


class Ledger:
    """Its sums, and how often it was asked. `away` and `slow` are set by a test."""

    def __init__(self) -> None:
        self.asked, self.most_at_once, self.away = list[tuple[str, Level]](), 0, False
        self._now, self.tokens = 0, 99
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def spent(self, who: Tenant, level: Level) -> tuple[int, int]:
        self.asked.append((who.tenant_id, level))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await self.goes_on.wait()
        self._now -= 1
        if self.away:
            raise OSError
        return self.tokens, 0


async def test_a_budget_is_not_spent_again_though_the_first_reading_was_lost_on_its_way() -> None:
    store, ledger = LosingStore(MemoryLimitStore()), Ledger()
    restorer = Restorer(store, ledger.spent)
    first = await store.reserve("a", WHO, need(1, 1))
    store.lost = True
    restorer.begin(first)
    await restorer.quiet()
    store.lost = False
    await store.settle(first, Used(2))
    spent, refused = 2, False
    for i in range(50):
        with suppress(QuotaExhausted):
            hold = await store.reserve(f"{i}", WHO, need(1, 1))
            restorer.begin(hold)
            await store.settle(hold, Used(2))
            spent += 2
            await asyncio.sleep(0.05)
            continue
        refused = True
        break
    assert refused
    assert spent < 40  # the second try comes after half a second


async def test_an_account_is_asked_for_once_at_a_time_and_the_ledger_answers_few_at_once() -> None:
    store, ledger = MemoryLimitStore(), Ledger()
    restorer = Restorer(store, ledger.spent)
    ledger.goes_on.clear()
    for i in range(10):
        for name in "abcde":
            restorer.begin(await store.reserve(f"{name}{i}", tenant(name, key=Limits(tokens_per_day=1000)), need()))
        await asyncio.sleep(0)
    ledger.goes_on.set()
    await restorer.quiet()
    assert sorted(ledger.asked) == [(name, "key") for name in "abcde"]
    assert ledger.most_at_once <= 2
    assert (await store.reserve("last", tenant("a", key=Limits(tokens_per_day=1000)), need())).unknown == ()


async def test_while_the_database_is_away_nothing_is_under_way_and_each_account_waits_for_its_next_try() -> None:
    store, ledger = MemoryLimitStore(), Ledger()
    restorer = Restorer(store, ledger.spent)
    ledger.away = True
    for i in range(5):
        restorer.begin(await store.reserve(f"{i}", WHO, need(1, 1)))
        began = time.monotonic()
        await restorer.quiet()  # a router that ends does not wait for the database
        assert time.monotonic() - began < 0.4
    assert len(ledger.asked) <= 2  # what failed for one is not tried for the others at once
    ledger.away = False
    await asyncio.sleep(0.6)
    await restorer.quiet()
    with pytest.raises(QuotaExhausted):
        await store.reserve("full", WHO, need())


async def test_rows_that_reach_the_ledger_after_the_first_reading_count_too() -> None:
    """As those of a router that died, which another one ships a moment later."""
    store, ledger = MemoryLimitStore(), Ledger()
    restorer, ledger.tokens = Restorer(store, ledger.spent, once_more_s=0.05), 10
    restorer.begin(await store.reserve("a", WHO, need(1, 1)))
    await restorer.quiet()
    ledger.tokens = 99
    await store.reserve("b", WHO, need(1, 1))
    await asyncio.sleep(0.1)
    await restorer.quiet()
    with pytest.raises(QuotaExhausted):
        await store.reserve("full", WHO, need())
    assert len(ledger.asked) == 4  # two levels, twice each and then never again
