"""What the store in memory promises besides: it forgets what has no meaning any more."""

from __future__ import annotations

import tracemalloc

from serve.limits import NOTHING, Used
from serve.limitstore.memory import MemoryLimitStore
from serve.words import Limits
from tests.support.limit_stores import Clock, need, tenant

LIMITS = Limits(60, 6000, 10, 1000)


async def test_accounts_without_meaning_are_forgotten_and_others_are_not(clock: Clock) -> None:
    store = MemoryLimitStore(clock_us=clock)
    await store.settle(await store.reserve("spent", tenant("spent", key=LIMITS), need()), Used(7))
    await store.reserve("held", tenant("held", key=LIMITS), need())
    for i in range(500):
        hold = await store.reserve(f"{i}", tenant(f"{i}", key=LIMITS), need())
        await store.settle(hold, NOTHING)
    assert len(store) > 2
    clock.pass_s(60)
    for i in range(500):
        hold = await store.reserve(f"again {i}", tenant("one", key=LIMITS), need())
        await store.settle(hold, NOTHING)
    assert len(store) == 3
    day = (await store.reserve("asks", tenant("spent", key=Limits(tokens_per_day=100)), need(0, 0))).standing.tokens
    assert day
    assert day.remaining == 93


async def test_what_was_settled_is_forgotten_in_the_end(clock: Clock) -> None:
    store, who = MemoryLimitStore(hold_s=60, kept_s=60, clock_us=clock), tenant(key=Limits())

    async def many(name: str) -> int:
        for i in range(1500):
            await store.settle(await store.reserve(f"{name} {i}", who, need()), Used(1))
            await store.reserve(f"never settled {name} {i}", who, need())
            clock.pass_s(0.1)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = await many("first")
        assert await many("second") < first * 1.2
    finally:
        tracemalloc.stop()


async def test_ten_thousand_tenants_with_a_request_each_would_fit_into_forty_megabytes(clock: Clock) -> None:
    store, people = MemoryLimitStore(clock_us=clock), [tenant(f"{i}", key=LIMITS, tenant=LIMITS) for i in range(1000)]
    tracemalloc.start()
    try:
        for i, who in enumerate(people):
            await store.reserve(f"{i}", who, need())
        assert tracemalloc.get_traced_memory()[0] / len(people) < 4000
    finally:
        tracemalloc.stop()


async def test_of_whoever_has_no_limits_nothing_is_remembered(clock: Clock) -> None:
    store = MemoryLimitStore(clock_us=clock)
    for i in range(100):
        hold = await store.reserve(f"{i}", tenant("free"), need())
        await store.started(hold)
        assert await store.grow(hold, 500, 7)
        assert hold.output_tokens == 500
        await store.settle(hold, Used(7))
    assert (len(store), len(store._records), len(store._settled)) == (0, 0, 0)
