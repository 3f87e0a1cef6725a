"""What a clock that was set does to limits, in memory and on a real Redis: each jump has a bounded, clear end."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from serve.limits import NOTHING, Used
from serve.limitstore.base import Hold, LimitStore
from serve.words import Level, Limits
from tests.support.limit_stores import Clock, need, passes, refused, tenant


@pytest.mark.parametrize("level", ["key", "organisation"])
@pytest.mark.parametrize("by_s", [3600, -3600, 86_400, -86_400, 40 * 86_400, -40 * 86_400])
async def test_a_clock_that_was_wrong_for_one_request_refuses_nobody_afterwards(
    store: LimitStore, clock: Clock, level: Level, by_s: float
) -> None:
    ample = Limits(60, 6000, 5, 5000, 10_000, 10_000)
    who = tenant("acme", "org", **{level: ample})
    await store.settle(await store.reserve("before", who, need(50, 50, 100)), Used(100, 100))
    clock.pass_s(by_s)
    left = await store.reserve("during", who, need(50, 50, 100))
    await store.settle(await store.reserve("ended", who, need(50, 50, 100)), Used(100, 100))
    clock.pass_s(-by_s)
    standing = (await store.reserve("after", who, need(50, 50, 100))).standing
    assert standing.requests
    assert standing.requests.reset_s <= 4
    assert standing.tokens
    assert standing.tokens.reset_s <= 4 or standing.tokens.limit == 10_000
    for i in range(50):
        await store.settle(await store.reserve(f"{i}", who, need(1, 1, 1)), Used(1, 1))
        clock.pass_s(1)
    clock.pass_s(11)  # 61 s: what a dead router held has lapsed
    assert (await store.reserve("last", who, need(0, 0, 0))).standing.requests == (60, 59, 1.0)
    await store.settle(left, NOTHING)


async def test_a_wrong_clock_does_not_empty_a_day_or_a_month(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(tokens_per_day=100), tenant=Limits(budget_per_month=100))
    first = await store.reserve("first", who, need(1, 1, 1))
    ledger = {"key": (98, 0), "tenant": (98, 98)}

    async def restored(hold: Hold) -> None:
        for level in hold.unknown:
            await store.restore(hold, level, *ledger[level], clock())

    await restored(first)
    assert not await passes(store, who, "full")
    for by_s in (86_400, -86_400, 30 * 86_400, -30 * 86_400):
        clock.pass_s(by_s)
        await store.settle(await store.reserve(f"wrong {by_s}", who, need(0, 0)), NOTHING)
        clock.pass_s(-by_s)
        hold = await store.reserve(f"right {by_s}", who, need(0, 0))
        assert set(hold.unknown) >= {"key"}
        await restored(hold)
        assert (await refused(store, who, f"{by_s}")).reason == "key.tokens_per_day"
        assert (await refused(store, tenant(tenant=Limits(budget_per_month=100)), f"month {by_s}", cost=3)).reason


async def test_a_midnight_that_comes_by_itself_asks_the_ledger_nothing(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(tokens_per_day=100, budget_per_month=100))
    clock.pass_s(12 * 3600 - 60)
    hold = await store.reserve("a", who, need(1, 1))
    await store.restore(hold, "key", 100, 50, clock())
    clock.pass_s(100)
    assert (await store.reserve("b", who, need(50, 40, 50))).unknown == ()
    assert not await passes(store, who, "c", cost=1)


async def test_a_clock_set_forward_tells_nobody_to_come_back_in_hours(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(concurrent_requests=1))
    await store.settle(await store.reserve("a", who, need()), Used(1))
    hold = await store.reserve("b", who, need())
    clock.pass_s(30)
    await store.started(hold)
    clock.pass_s(3600)
    await store.renew([hold])
    await store.settle(hold, Used(1))
    await store.reserve("c", who, need())
    assert ((await refused(store, who, "d")).retry_after_s or 0) <= 120


async def test_months_end_where_they_end_in_utc_for_years(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(budget_per_month=1))
    ends = [datetime(2026 + n // 12, n % 12 + 1, 1, tzinfo=UTC) for n in range(11, 40)]
    ends += [datetime(year, 3, 1, tzinfo=UTC) for year in (2096, 2100, 2101)]
    for end in ends:
        clock.now_us = int(end.timestamp()) * 1_000_000 - 1
        await store.settle(await store.reserve(f"{end}", who, need(1, 0, 1)), Used(1, 1))
        assert not await passes(store, who, f"before {end}", cost=1)
        clock.now_us += 1
        hold = await store.reserve(f"after {end}", who, need(1, 0, 1))
        await store.settle(hold, NOTHING)
