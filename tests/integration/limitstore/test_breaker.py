"""A Redis that is killed, stopped, slowed by a second, and back: what requests see, and that no charge is lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from serve.errors import LimitReached, LimitsUnavailable
from serve.limit_settings import Loss
from serve.limits import NOTHING, Used
from serve.limitstore.base import Hold, LimitStore, StoreLost
from serve.limitstore.breaker import GuardedLimitStore
from serve.limitstore.memory import MemoryLimitStore
from serve.words import BANDS, Band, Limits, Tenant
from tests.support.limit_stores import need, redis_store, tenant
from tests.support.servers import Redis
from tests.support.slow_proxy import SlowProxy

DEADLINE_S = 0.3  # twenty times what a call takes on a busy machine
CHOICES: dict[Band, Loss] = {"interactive": "open", "standard": "local", "batch": "closed"}


class Watched:
    """A guarded store on Redis, the same Redis bare, and what was told."""

    def __init__(self, shared: LimitStore, bare: LimitStore, kept: int = 1000) -> None:
        self.events = Counter[tuple[str, str]]()
        self.bare = bare
        self.guarded = GuardedLimitStore(
            shared, MemoryLimitStore(), CHOICES, self._count, deadline_s=DEADLINE_S, probe_s=0.05, kept=kept
        )

    def _count(self, event: str, band: str) -> None:
        self.events[event, band] += 1

    def told(self, event: str) -> int:
        return sum(n for (name, _), n in self.events.items() if name == event)


@asynccontextmanager
async def watched(redis_server: Redis, through: str | None = None, kept: int = 1000) -> AsyncIterator[Watched]:
    bare = redis_store(redis_server.url)
    shared = redis_store(through or redis_server.url, timeout_s=DEADLINE_S)
    shared._prefix = bare._prefix
    both = Watched(shared, bare, kept)
    try:
        yield both
    finally:
        await both.guarded.close()
        await bare.close()


def of_band(band: Band, limits: Limits) -> Tenant:
    return replace(tenant(band, key=limits), band=band)


DAY = Limits(tokens_per_day=100_000)


async def until(true: Callable[[], bool], within_s: float = 20) -> None:
    ends = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < ends, "it did not come true"
        await asyncio.sleep(0.02)


async def day_used(store: LimitStore, who: Tenant) -> int:
    """As the store counts it, holds included."""
    asking = await store.reserve(f"asking-{time.monotonic_ns()}", who, need(0, 0))
    await store.settle(asking, NOTHING)
    assert asking.standing.tokens
    return asking.standing.tokens.limit - asking.standing.tokens.remaining


async def lose(both: Watched) -> None:
    """Ask until the breaker opens. A stopped Redis carries out what it was asked when it goes on."""
    who = of_band("interactive", DAY)
    for hold in [await both.guarded.reserve(f"losing-{i}", who, need()) for i in range(3)]:
        await both.guarded.settle(hold, NOTHING)
    assert both.guarded.is_lost


@pytest.fixture(params=["killed", "stopped"])
def lost_redis(request: pytest.FixtureRequest, redis_server: Redis) -> Callable[[bool], None]:
    """Call with True to lose Redis, with False to have it back: a killed one comes back empty."""

    def change(lose_it: bool) -> None:
        if request.param == "killed":
            (redis_server.kill if lose_it else redis_server.start)()
        else:
            (redis_server.pause if lose_it else redis_server.go_on)()

    return change


async def test_each_band_gets_its_choice_and_every_charge_comes_once_redis_is_back(
    redis_server: Redis, lost_redis: Callable[[bool], None]
) -> None:
    async with watched(redis_server) as both:
        before = await both.guarded.reserve("before", of_band("standard", DAY), need(10, 10))
        lost_redis(True)
        try:
            await lose(both)
            ends = list[Hold]()
            for i in range(20):
                for band in ("interactive", "standard"):
                    ends.append(await both.guarded.reserve(f"{band}-{i}", of_band(band, DAY), need(10, 10)))
                with pytest.raises(LimitsUnavailable) as error:
                    await both.guarded.reserve(f"batch-{i}", of_band("batch", DAY), need(10, 10))
                assert error.value.retry_after_s
            assert {hold.counted_by for hold in ends} == {"nobody", "local"}
            assert await both.guarded.grow(before, 100, 0)
            for hold in [before, *ends]:
                await both.guarded.started(hold)
                await both.guarded.settle(hold, Used(33))
                await both.guarded.settle(hold, Used(33))
        finally:
            lost_redis(False)
        await until(lambda: not both.guarded.is_lost and not both.guarded.charges_kept)
        assert await day_used(both.bare, of_band("interactive", DAY)) == 20 * 33
        assert await day_used(both.bare, of_band("standard", DAY)) == 21 * 33
        assert await day_used(both.bare, of_band("batch", DAY)) == 0
        assert (await both.guarded.reserve("after", of_band("batch", DAY), need())).counted_by == "store"
        assert both.events["passed_uncounted", "interactive"] == 20 + 3
        assert both.events["passed_local", "standard"] == 20
        assert both.events["refused", "batch"] == 20
        assert both.told("opened") == both.told("closed") == 1
        assert both.told("charge_kept") == both.told("charge_delivered") == 41
        assert both.told("charge_dropped") == 0


async def test_local_limits_hold_while_redis_is_lost(redis_server: Redis, lost_redis: Callable[[bool], None]) -> None:
    async with watched(redis_server) as both:
        lost_redis(True)
        try:
            await lose(both)
            who = of_band("standard", Limits(concurrent_requests=1))
            hold = await both.guarded.reserve("a", who, need())
            with pytest.raises(LimitReached):
                await both.guarded.reserve("b", who, need())
            await both.guarded.settle(hold, Used(20))
            await both.guarded.reserve("c", who, need())
        finally:
            lost_redis(False)


async def test_a_call_that_was_given_up_and_carried_out_all_the_same_holds_nothing(redis_server: Redis) -> None:
    """Redis reads what was sent to it before it was stopped when it goes on."""
    who = of_band("batch", Limits(concurrent_requests=1))
    async with watched(redis_server) as both:
        await both.guarded.settle(await both.guarded.reserve("warm", who, need()), Used(20))
        redis_server.pause()
        try:
            with pytest.raises(LimitsUnavailable):
                await both.guarded.reserve("given up", who, need())
        finally:
            redis_server.go_on()
        await until(lambda: not both.guarded.charges_kept)
        await both.guarded.reserve("next", who, need())


async def test_a_redis_slowed_by_a_second_costs_a_request_no_more_than_the_deadline(redis_server: Redis) -> None:
    port = urlsplit(redis_server.url).port
    assert port
    async with SlowProxy(port) as proxy, watched(redis_server, f"redis://127.0.0.1:{proxy.port}/0") as both:
        who = of_band("interactive", Limits())
        assert (await both.guarded.reserve("fast", who, need())).counted_by == "store"
        proxy.delay_s, waits = 1.0, list[float]()
        for i in range(30):
            began = time.monotonic()
            hold = await both.guarded.reserve(f"{i}", who, need())
            await both.guarded.settle(hold, Used(20))
            waits.append(time.monotonic() - began)
        # Only the calls before the breaker opened waited: two of the first request, one of the second.
        assert max(waits) < 1.5  # it would be 2 s
        assert sorted(waits)[-3] < DEADLINE_S / 2
        assert both.told("call_lost") == 3
        proxy.delay_s = 0.0
        await until(lambda: not both.guarded.is_lost and not both.guarded.charges_kept)
        assert (await both.guarded.reserve("again", who, need())).counted_by == "store"


async def test_what_is_dropped_is_told(redis_server: Redis) -> None:
    async with watched(redis_server, kept=5) as both:
        redis_server.pause()
        try:
            await lose(both)
            for i in range(8):
                hold = await both.guarded.reserve(f"{i}", of_band("standard", DAY), need())
                await both.guarded.settle(hold, Used(20))
        finally:
            redis_server.go_on()
        await until(lambda: not both.guarded.charges_kept)
        assert both.events["charge_dropped", "standard"] == 3
        assert both.events["charge_delivered", "standard"] == 5
        assert await day_used(both.bare, of_band("standard", DAY)) == 5 * 20


async def test_a_client_that_leaves_while_the_store_is_asked_leaves_no_hold(redis_server: Redis) -> None:
    who = of_band("standard", Limits(concurrent_requests=1))
    async with watched(redis_server) as both:
        await both.guarded.settle(await both.guarded.reserve("warm", who, need()), Used(20))
        redis_server.pause()
        try:
            asking = asyncio.create_task(both.guarded.reserve("left", who, need()))
            await asyncio.sleep(0.05)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        finally:
            redis_server.go_on()
        await until(lambda: not both.guarded.charges_kept)
        await asyncio.sleep(0.05)
        assert (await both.guarded.reserve("next", who, need())).counted_by == "store"


async def test_a_refusal_is_an_answer_and_no_loss(redis_server: Redis) -> None:
    async with watched(redis_server) as both:
        for band in BANDS:
            for i in range(5):
                with pytest.raises(LimitReached):
                    await both.guarded.reserve(f"{i}", of_band(band, Limits(requests_per_minute=0)), need())
        assert not both.guarded.is_lost
        assert not both.events


async def test_a_redis_that_is_not_there_is_lost_and_its_address_is_not_told() -> None:
    store = redis_store("redis://:canary@127.0.0.1:1/0", timeout_s=1)
    with pytest.raises(StoreLost) as error:
        await store.reserve("a", tenant(key=Limits()), need())
    assert "canary" not in repr(error.value)
    assert error.value.__cause__ is None
    await store.close()
