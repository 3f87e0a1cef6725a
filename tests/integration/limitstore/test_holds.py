"""Holds that are renewed, and accounts that are not known yet: in memory and on a real Redis."""

from __future__ import annotations

from serve.limits import DAY_US, NOTHING, Used
from serve.limitstore.base import Hold, LimitStore
from serve.words import Limits
from tests.support.limit_stores import Clock, need, passes, refused, tenant


async def test_a_hold_of_a_dead_router_vanishes_and_a_living_one_renews_it(store: LimitStore, clock: Clock) -> None:
    dead, living = (tenant(name, key=Limits(concurrent_requests=1)) for name in ("dead", "living"))
    await store.reserve("a", dead, need())
    hold = await store.reserve("b", living, need())
    clock.pass_s(40)
    await store.started(hold)
    clock.pass_s(40)
    assert await passes(store, dead, "c")
    assert not await passes(store, living, "d")
    assert await store.grow(hold, 64, 0)
    clock.pass_s(40)
    assert not await passes(store, living, "e")


async def test_a_renewed_hold_lives_as_long_as_its_answer(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(concurrent_requests=2, queued_tokens=60, tokens_per_day=1000))
    waiting, answered = await store.reserve("a", who, need(20, 10)), await store.reserve("b", who, need(20, 10))
    await store.started(answered)
    for _ in range(10):
        clock.pass_s(40)
        await store.renew([waiting, answered])
    assert (await refused(store, who, "c")).reason == "key.concurrent_requests"
    await store.settle(answered, Used(50))
    assert (await refused(store, who, "d", prompt=21)).reason == "key.queued_tokens"  # one still waits
    await store.settle(waiting, NOTHING)
    await store.renew([waiting, answered])  # what is settled stays so
    standing = (await store.reserve("e", who, need(50, 10))).standing.tokens
    assert standing
    assert (standing.limit, standing.remaining) == (1000, 890)


async def test_a_hold_that_lapsed_or_was_forgotten_is_held_again_when_it_is_renewed(
    store: LimitStore, clock: Clock
) -> None:
    limits = Limits(concurrent_requests=1, queued_tokens=30, tokens_per_day=200, budget_per_month=100)
    who = tenant(key=limits)
    hold = await store.reserve("a", who, need(10, 10, 20))
    await store.started(hold)
    assert await store.grow(hold, 90, 50)
    clock.pass_s(61)
    assert await passes(store, who, "b", cost=0)
    await store.settle(Hold("b", who, need(), 10), NOTHING)
    await store.renew([hold])
    assert (await refused(store, who, "c")).reason == "key.concurrent_requests"
    await store.settle(hold, Used(30, 10))
    assert await passes(store, who, "e", 10, 10, 90)


async def test_a_renewal_brings_what_the_store_missed(store: LimitStore) -> None:
    """A growth, or a first token, that was lost on its way."""
    who = tenant(key=Limits(tokens_per_day=100, queued_tokens=20))
    hold = await store.reserve("a", who, need(10, 10))
    hold.output_tokens, hold.is_queued = 80, False
    await store.renew([hold])
    assert (await refused(store, who, "b", prompt=1)).reason == "key.tokens_per_day"
    assert await passes(store, who, "c", 9, 1)


async def test_an_account_is_unknown_until_the_ledgers_sums_are_in(store: LimitStore, clock: Clock) -> None:
    day, month = Limits(tokens_per_day=100), Limits(budget_per_month=100)
    who = tenant("acme", "org", key=day, organisation=month)
    await store.settle(Hold("from before", who, need(), 10), Used(20, 20))  # after the restart, it ends first
    hold = await store.reserve("a", who, need(1, 1, 1))
    assert hold.unknown == ("key", "organisation")
    assert (await store.reserve("b", who, need(1, 1, 1))).unknown == (
        "key",
        "organisation",
    )  # the first reading was lost
    for _ in range(2):
        await store.restore(hold, "key", 96, 0, clock())
    assert (await store.reserve("c", who, need(0, 0, 1))).unknown == ("organisation",)
    await store.restore(hold, "organisation", 10, 10, clock())  # it knows more than the ledger yet
    assert (await refused(store, who, "d", prompt=1)).reason == "key.tokens_per_day"
    other = tenant("other", "org", organisation=month)
    assert (await store.reserve("e", other, need(cost=77))).unknown == ()
    assert not await passes(store, other, "f", cost=1)


async def test_sums_of_another_day_or_month_than_the_stores_are_not_taken(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(tokens_per_day=100, budget_per_month=100))
    hold = await store.reserve("a", who, need(1, 1, 1))
    for days in (-1, 1, 20):
        await store.restore(hold, "key", 100, 100, clock() + days * DAY_US)
    again = await store.reserve("b", who, need(1, 1, 1))
    assert again.unknown == ("key",)
    await store.restore(again, "key", 100, 100, clock())
    assert not await passes(store, who, "c", cost=1)
