"""What the store in Redis promises besides: one round trip, keys that expire, one slot, and Redis's own clock."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest
from redis import Redis as Client
from redis.crc import key_slot

from serve.errors import LimitReached
from serve.limits import Need, Used
from serve.words import Limits
from tests.support.limit_stores import Clock, need, redis_store, tenant
from tests.support.servers import Redis

WHO = tenant("acme", "org", key=Limits(60), tenant=Limits(tokens_per_minute=6000), organisation=Limits())


def keys_of(server: Redis) -> dict[str, int]:
    """Every key, with its time to live in ms."""
    with Client.from_url(server.url, decode_responses=True) as client:
        return {key: client.pttl(key) for key in client.keys("*")}


def commands_of(server: Redis) -> dict[str, int]:
    with Client.from_url(server.url) as client:
        return {name: told["calls"] for name, told in client.info("commandstats").items()}


async def test_every_verb_is_one_round_trip(redis_server: Redis) -> None:
    store = redis_store(redis_server.url)
    await store.settle(await store.reserve("first", WHO, need()), Used(1))
    before = commands_of(redis_server)
    for i in range(10):
        hold = await store.reserve(f"{i}", WHO, need())
        await store.started(hold)
        assert await store.grow(hold, 64, 0)
        await store.settle(hold, Used(10))
    after = commands_of(redis_server)
    grew = {name for name, calls in after.items() if calls > before.get(name, 0)}
    assert after["cmdstat_evalsha"] - before["cmdstat_evalsha"] == 40
    sent = {"cmdstat_evalsha", "cmdstat_info", "cmdstat_client", "cmdstat_hello"}
    inside = {"time", "get", "set", "hget", "hset", "hmget", "hdel", "zadd", "zrem", "zrangebyscore", "pexpire"}
    assert grew <= sent | {f"cmdstat_{name}" for name in inside}
    await store.close()


async def test_many_holds_are_renewed_at_once_with_one_script_per_key(redis_server: Redis) -> None:
    store, other = redis_store(redis_server.url), tenant("other", key=Limits(60))
    holds = [await store.reserve(f"{i}", (WHO, other)[i % 2], need()) for i in range(40)]
    await store.renew(holds)
    before = commands_of(redis_server)
    await store.renew(holds)
    after = commands_of(redis_server)
    assert after["cmdstat_evalsha"] - before["cmdstat_evalsha"] == 2
    await store.renew([])
    await store.close()


async def test_a_redis_that_lost_its_data_holds_again_what_is_renewed_and_asks_the_ledger_again(
    redis_server: Redis,
) -> None:
    store, who = redis_store(redis_server.url), tenant(key=Limits(concurrent_requests=2, tokens_per_day=1000))
    hold = await store.reserve("a", who, need())
    await store.restore(hold, "key", 100, 0, time.time_ns() // 1000)
    assert (await store.reserve("b", who, need())).unknown == ()
    with Client.from_url(redis_server.url) as client:
        client.flushall()
    await store.renew([hold])
    assert (await store.reserve("c", who, need())).unknown == ("key",)
    with pytest.raises(LimitReached):
        await store.reserve("d", who, need())
    await store.close()


async def test_no_key_lives_for_ever_and_all_of_a_request_lie_in_one_slot(redis_server: Redis) -> None:
    with Client.from_url(redis_server.url) as client:
        client.flushdb()
    store = redis_store(redis_server.url)
    await store.reserve("open", WHO, need())
    await store.settle(await store.reserve("done", WHO, Need(100, 100, 5)), Used(100, 5))
    keys = keys_of(redis_server)
    assert len(keys) == 2 + 3 * 3
    assert min(keys.values()) > 0
    assert len({key_slot(key.encode()) for key in keys}) == 1
    await store.close()


async def test_redis_s_clock_is_the_one_that_counts(redis_server: Redis) -> None:
    store, limits = redis_store(redis_server.url), tenant(key=Limits(tokens_per_minute=60_000))
    await store.settle(await store.reserve("a", limits, need(100, 100)), Used(200))
    standing = (await store.reserve("b", limits, need(0, 0))).standing.tokens
    assert standing
    assert standing.remaining >= 59_800
    assert standing.reset_s <= 0.2
    await store.close()


async def test_a_restarted_redis_gets_the_script_again_over_new_connections(redis_server: Redis) -> None:
    store = redis_store(redis_server.url)
    for name in "ab":
        await asyncio.gather(*(store.reserve(f"{name}{i}", WHO, need()) for i in range(5)))
        redis_server.kill()
        redis_server.start()
        await asyncio.sleep(0.05)  # so that the loop sees the old connections end
    await store.close()


async def test_two_routers_share_what_is_counted(redis_server: Redis, clock: Clock) -> None:
    one, other = redis_store(redis_server.url, clock), redis_store(redis_server.url, clock)
    other._prefix = one._prefix
    who, passed = tenant(key=Limits(requests_per_minute=10)), 0
    for i in range(10):
        for router in (one, other):
            with suppress(LimitReached):
                await router.reserve(f"{i} {id(router)}", who, need())
                passed += 1
    assert passed == 10
    await one.close()
    await other.close()
