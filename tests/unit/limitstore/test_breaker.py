"""A guarded store whose shared one is lost now and then: what must be asked again is, and what runs goes on."""

from __future__ import annotations

import pytest

from serve.errors import LimitReached
from serve.limitstore.base import Hold, StoreLost
from serve.limitstore.breaker import GuardedLimitStore
from serve.limitstore.memory import MemoryLimitStore
from serve.words import Limits
from tests.support.limit_stores import Clock, LosingStore, need, tenant

WHO = tenant(key=Limits(tokens_per_day=100, concurrent_requests=2))


def guarded(shared: LosingStore, clock: Clock) -> GuardedLimitStore:
    local = MemoryLimitStore(hold_s=60, clock_us=clock)
    everyone_local = dict.fromkeys(("interactive", "standard", "batch"), "local")
    return GuardedLimitStore(shared, local, everyone_local, lambda *_: None, failures=2)  # type: ignore[arg-type]


async def test_a_restoration_that_is_lost_is_told_and_the_account_stays_unknown(clock: Clock) -> None:
    shared = LosingStore(MemoryLimitStore(hold_s=60, clock_us=clock))
    store = guarded(shared, clock)
    hold = await store.reserve("a", WHO, need())
    shared.lost = True
    with pytest.raises(StoreLost):
        await store.restore(hold, "key", 99, 0, clock())
    shared.lost = False
    assert (await store.reserve("b", WHO, need())).unknown == ("key",)
    await store.close()


async def test_what_local_memory_once_knew_is_asked_again_at_the_next_outage(clock: Clock) -> None:
    shared = LosingStore(MemoryLimitStore(hold_s=60, clock_us=clock))
    store = guarded(shared, clock)
    for outage in range(2):
        shared.lost = True
        hold = await store.reserve(f"{outage}", WHO, need())
        assert (hold.counted_by, hold.unknown) == ("local", ("key",))
        await store.restore(hold, "key", 10 + outage, 0, clock())
        assert (await store.reserve(f"{outage} again", WHO, need(1, 1))).unknown == ()
        shared.lost, store._open = False, False
        await store.reserve(f"{outage} back", WHO, need(1, 1))
        clock.pass_s(61)
    await store.close()


async def test_holds_are_renewed_where_they_are_counted_and_a_lost_renewal_is_made_up_for(clock: Clock) -> None:
    shared = LosingStore(MemoryLimitStore(hold_s=60, clock_us=clock))
    store = guarded(shared, clock)
    in_store = await store.reserve("a", WHO, need())
    shared.lost = True
    in_memory = await store.reserve("b", WHO, need())
    for _ in range(3):
        clock.pass_s(40)
        await store.renew([in_store, in_memory, Hold("nobody's", WHO, need(), 10, counted_by="nobody")])
    await store.reserve("c", WHO, need())
    with pytest.raises(LimitReached):  # two in memory
        await store.reserve("d", WHO, need())
    shared.lost, store._open = False, False
    await store.renew([in_store])  # it had lapsed
    await store.reserve("e", WHO, need())
    with pytest.raises(LimitReached):
        await store.reserve("f", WHO, need())
    await store.close()
