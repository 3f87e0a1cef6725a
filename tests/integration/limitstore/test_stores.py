"""What every store of limits promises: one suite, in memory and on a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from serve.errors import ConcurrencyLimited, LimitReached, QueueLimited, QuotaExhausted, TokensLimited
from serve.limits import NOTHING, Used
from serve.limitstore.base import LimitStore
from serve.words import Limits
from tests.support.limit_stores import Clock, need, passes, refused, tenant


@pytest.mark.parametrize(
    "limits",
    [
        Limits(requests_per_minute=1), Limits(tokens_per_minute=20), Limits(concurrent_requests=1),
        Limits(queued_tokens=20), Limits(tokens_per_day=20), Limits(budget_per_month=5),
    ],
)  # fmt: skip
async def test_of_fifty_at_once_one_passes_a_limit_for_one(store: LimitStore, limits: Limits) -> None:
    for level in ("key", "tenant", "organisation"):
        who = tenant(level, "org", **{level: limits})
        passed = await asyncio.gather(*(passes(store, who, f"{level}-{i}", cost=5) for i in range(50)))
        assert sum(passed) == 1


async def test_a_refusal_at_one_level_holds_nothing_at_the_others(store: LimitStore) -> None:
    tight = tenant("tight", "org", key=Limits(concurrent_requests=9), organisation=Limits(concurrent_requests=0))
    assert not await passes(store, tight, "a")
    alone = tenant("tight", "org", key=Limits(concurrent_requests=1))
    assert await passes(store, alone, "b")


async def test_a_refusal_names_the_level_the_limit_and_what_was_asked(store: LimitStore) -> None:
    who = tenant("acme", "org", key=Limits(requests_per_minute=9), organisation=Limits(tokens_per_minute=100))
    await store.reserve("a", who, need(90, 0))
    error = await refused(store, who, "b")
    assert (error.status, error.type, error.code) == (429, "tokens", "rate_limit_exceeded")
    assert error.reason == "organisation.tokens_per_minute"
    assert "tokens per minute of this organisation is 100" in error.message
    assert "20" in error.message
    assert "90" not in error.message  # what others used is nobody's to know


async def test_minute_limits_refill_all_the_time_and_tell_when_it_fits(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(requests_per_minute=2))
    assert await passes(store, who, "a")
    assert await passes(store, who, "b")
    error = await refused(store, who, "c")
    assert type(error) is LimitReached
    assert error.retry_after_s == 30
    assert "x-should-retry" not in error.headers
    clock.pass_s(29)
    assert (await refused(store, who, "d")).retry_after_s == 1
    clock.pass_s(1)
    assert await passes(store, who, "e")


async def test_what_can_never_fit_says_so(store: LimitStore) -> None:
    who = tenant(key=Limits(tokens_per_minute=100))
    error = await refused(store, who, "a", prompt=95)
    assert isinstance(error, TokensLimited)
    assert error.retry_after_s is None
    assert error.headers["x-should-retry"] == "false"
    for limits in (Limits(requests_per_minute=0), Limits(concurrent_requests=0), Limits(budget_per_month=0)):
        assert (await refused(store, tenant("none", key=limits), "b")).headers["x-should-retry"] == "false"


async def test_the_refusal_that_lasts_longest_is_told(store: LimitStore) -> None:
    who = tenant(key=Limits(requests_per_minute=1), tenant=Limits(tokens_per_day=25))
    hold = await store.reserve("a", who, need())
    await store.settle(hold, Used(20))
    assert (await refused(store, who, "b")).reason == "tenant.tokens_per_day"


async def test_settling_gives_back_what_was_not_used_and_charges_what_was(store: LimitStore) -> None:
    who = tenant(key=Limits(tokens_per_minute=100, tokens_per_day=100, budget_per_month=100))
    hold = await store.reserve("a", who, need(10, 80, 90))
    assert not await passes(store, who, "b", cost=20)
    await store.settle(hold, Used(30, 30))
    assert await passes(store, who, "c", 10, 60, 70)
    assert not await passes(store, who, "d", 1, 0, 0)


async def test_settling_twice_charges_once(store: LimitStore) -> None:
    who = tenant(key=Limits(tokens_per_day=100))
    hold = await store.reserve("a", who, need())
    for _ in range(3):
        await store.settle(hold, Used(40))
    assert await passes(store, who, "b", 60, 0)


async def test_a_request_refused_later_on_costs_nothing(store: LimitStore) -> None:
    limits = Limits(1, 20, 1, 20, 20, 20)
    for i in range(5):
        hold = await store.reserve(f"{i}", tenant(key=limits), need(cost=20))
        await store.settle(hold, NOTHING)


async def test_an_aborted_stream_pays_for_what_was_made_to_the_token(store: LimitStore, clock: Clock) -> None:
    who, charged = tenant(key=Limits(tokens_per_day=1_000_000)), 0
    for i in range(200):
        made = i * 7 % 90
        hold = await store.reserve(f"{i}", who, need(10, 64))
        if made:
            await store.started(hold)
        if made > 64:
            assert await store.grow(hold, 128, 0)
        await store.settle(hold, Used(10 + made))
        charged += 10 + made
        clock.pass_s(0.1)
    standing = (await store.reserve("last", who, need(0, 0))).standing.tokens
    assert standing
    assert standing.limit - standing.remaining == charged


async def test_a_settled_hold_cannot_be_reserved_again(store: LimitStore) -> None:
    who = tenant(key=Limits())
    hold = await store.reserve("a", who, need())
    assert (await store.reserve("a", who, need())).hold_id == hold.hold_id  # the answer to the first was lost
    await store.settle(hold, NOTHING)
    with pytest.raises(ValueError, match="settled"):
        await store.reserve("a", who, need())


async def test_a_forgotten_hold_is_charged_all_the_same(store: LimitStore, clock: Clock) -> None:
    """A Redis that lost its memory, or a router that slept too long."""
    who = tenant(key=Limits(tokens_per_day=100))
    hold = await store.reserve("a", who, need())
    clock.pass_s(61)
    assert await passes(store, who, "b", 100, 0)  # a dead router's holds vanish
    await store.settle(hold, Used(30))
    clock.pass_s(61)
    assert not await passes(store, who, "c", 71, 0)
    assert await passes(store, who, "d", 70, 0)


async def test_queued_tokens_are_held_until_the_first_token(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(queued_tokens=50))
    first = await store.reserve("a", who, need(40, 10))
    error = await refused(store, who, "b")
    assert isinstance(error, QueueLimited)
    assert (error.code, error.retry_after_s) == ("queue_limit", None)  # nothing has left this queue yet
    clock.pass_s(5)
    await store.started(first)  # 50 tokens in 5 s
    await store.reserve("c", who, need(40, 10))
    assert (await refused(store, who, "d")).retry_after_s == 2  # 20 tokens are too many
    assert (await refused(store, who, "e", prompt=50)).headers["x-should-retry"] == "false"


async def test_concurrency_tells_how_often_the_callers_own_requests_end(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(concurrent_requests=2))
    holds = [await store.reserve(f"{i}", who, need()) for i in range(2)]
    error = await refused(store, who, "x")
    assert isinstance(error, ConcurrencyLimited)
    assert (error.code, error.retry_after_s) == ("concurrency_limit", None)
    clock.pass_s(4)
    await store.settle(holds[0], Used(1))
    await store.reserve("again", who, need())
    assert (await refused(store, who, "y")).retry_after_s == 4


async def test_a_used_up_day_does_not_ask_to_come_back_until_it_is_nearly_over(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(tokens_per_day=20))
    await store.settle(await store.reserve("a", who, need()), Used(20))
    error = await refused(store, who, "b")
    assert isinstance(error, QuotaExhausted)
    assert (error.code, error.type, error.retry_after_s) == ("insufficient_quota", "insufficient_quota", None)
    assert error.headers["x-should-retry"] == "false"
    clock.pass_s(12 * 3600 - 90)
    error = await refused(store, who, "c")
    assert error.retry_after_s == 90
    assert "x-should-retry" not in error.headers
    clock.pass_s(90)
    assert await passes(store, who, "d")


async def test_what_is_only_held_of_a_budget_is_not_spent(store: LimitStore) -> None:
    who = tenant(key=Limits(budget_per_month=100))
    hold = await store.reserve("a", who, need(cost=90))
    assert isinstance(await refused(store, who, "b", cost=20), ConcurrencyLimited)
    await store.settle(hold, Used(20, 90))
    assert isinstance(await refused(store, who, "c", cost=20), QuotaExhausted)


async def test_a_month_ends_where_it_ends_in_utc(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(budget_per_month=100))
    await store.settle(await store.reserve("a", who, need(cost=100)), Used(20, 100))
    clock.pass_s(17.5 * 86_400 - 1)  # 30 November, 23:59:59
    assert not await passes(store, who, "b", cost=1)
    clock.pass_s(1)
    assert await passes(store, who, "c", cost=100)


async def test_a_request_over_midnight_is_charged_to_the_day_in_which_it_ends(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(tokens_per_day=100))
    clock.pass_s(12 * 3600 - 10)
    hold = await store.reserve("a", who, need(50, 50))
    clock.pass_s(20)
    assert not await passes(store, who, "b")
    await store.settle(hold, Used(60))
    assert await passes(store, who, "c", 40, 0)


async def test_an_answer_longer_than_expected_holds_more_and_stops_at_a_hard_limit(store: LimitStore) -> None:
    who = tenant(key=Limits(tokens_per_day=200, budget_per_month=1000))
    hold = await store.reserve("a", who, need(10, 10, 20))
    assert await store.grow(hold, 90, 100)
    assert hold.output_tokens == 90
    assert await store.grow(hold, 90, 100)  # in all, not once more
    assert not await store.grow(hold, 191, 201)
    assert not await store.grow(hold, 100, 1001)
    assert hold.output_tokens == 90
    assert await store.grow(hold, 190, 1000)
    await store.settle(hold, Used(200, 300))
    assert not await passes(store, who, "b", 1, 0, 0)


async def test_minute_limits_go_into_debt_rather_than_cut_an_answer(store: LimitStore, clock: Clock) -> None:
    who = tenant(key=Limits(tokens_per_minute=60))
    hold = await store.reserve("a", who, need(10, 10))
    assert await store.grow(hold, 110, 0)
    await store.settle(hold, Used(120))
    error = await refused(store, who, "b")
    assert error.retry_after_s == 80  # 60 of debt, and 20 for itself
    clock.pass_s(80)
    assert await passes(store, who, "c")


async def test_a_limit_set_at_noon_knows_the_morning(store: LimitStore) -> None:
    await store.settle(await store.reserve("a", tenant(key=Limits()), need()), Used(70))
    assert not await passes(store, tenant(key=Limits(tokens_per_day=89)), "b")
    assert await passes(store, tenant(key=Limits(tokens_per_day=90)), "c")


async def test_the_tightest_level_stands_in_the_headers(store: LimitStore) -> None:
    who = tenant("acme", "org", key=Limits(requests_per_minute=60, tokens_per_minute=1000),
                 organisation=Limits(requests_per_minute=10, tokens_per_minute=6000))  # fmt: skip
    standing = (await store.reserve("a", who, need(50, 50))).standing
    assert standing.requests == (10, 9, 6.0)
    assert standing.tokens == (1000, 900, 6.0)


async def test_a_tenant_without_limits_passes(store: LimitStore) -> None:
    hold = await store.reserve("a", tenant(), need())
    await store.started(hold)
    assert await store.grow(hold, 10**6, 10**9)
    await store.settle(hold, Used(10**6))
