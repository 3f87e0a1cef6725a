"""Memory and Redis do the same, whatever comes in whatever order: random lives of requests, one clock for both."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from serve.errors import LimitReached
from serve.limits import NOTHING, Need, Used
from serve.limitstore.base import Hold, LimitStore
from serve.limitstore.memory import MemoryLimitStore
from serve.words import Limits, Tenant
from tests.support.limit_stores import Clock, redis_store, tenant
from tests.support.servers import Redis

STEPS = 400


async def told(store: LimitStore, hold_id: str, who: Tenant, need: Need) -> tuple[Hold | None, object]:
    """The hold, and everything that a client would see."""
    try:
        hold = await store.reserve(hold_id, who, need)
    except LimitReached as e:
        return None, (type(e), e.message, e.reason, e.retry_after_s, dict(e.headers))
    return hold, (hold.standing, hold.unknown)


def some_limits(draw: random.Random) -> Limits:
    def maybe(most: int) -> int | None:
        return draw.choice([None, draw.randint(most // 3, most)])

    return Limits(maybe(700), maybe(30_007), maybe(7), maybe(1500), maybe(60_000), maybe(90_000))


async def use_something(stores: list[LimitStore], people: list[Tenant], name: str) -> None:
    """One who used nothing at all in its windows may be forgotten, with how fast it was."""
    for store in stores:
        for who in people:
            await store.settle(Hold(f"{name}-{who.tenant_id}", who, Need(1, 0), 0), Used(1, 1))


@pytest.mark.parametrize("seed", range(6))
async def test_both_stores_say_the_same_at_every_step(seed: int, clock: Clock, redis_server: Redis) -> None:
    draw = random.Random(seed)
    # Redis forgets by its own clock, not by the test's: here neither forgets.
    stores: list[LimitStore] = [
        MemoryLimitStore(60, 1e9, clock), redis_store(redis_server.url, clock, kept_s=1e9)
    ]  # fmt: skip
    people = [
        tenant(name, "org", key=some_limits(draw), tenant=Limits(), organisation=some_limits(draw)) for name in "ab"
    ]
    organisation = people[0].limits[2]
    people[1] = replace(people[1], limits=(*people[1].limits[:2], organisation))
    live, said = dict[str, list[Hold]](), list[bool]()
    try:
        await use_something(stores, people, "first")
        for step in range(STEPS):
            clock.pass_s(draw.choice([0, 0.000_001, 0.1, 0.73, 2, 13]))
            if draw.random() < 0.02:
                clock.pass_s(draw.choice([-0.3, -45, 3600, -3600, 86_400, -86_400, 3_000_000, -3_000_000]))
                await use_something(stores, people, f"jump-{step}")
            verb = draw.choice(
                ["reserve", "reserve", "reserve", "started", "grow", "renew", "restore", "settle", "settle"]
            )
            if verb == "reserve" or not live:
                who, need = draw.choice(people), Need(draw.randint(1, 300), draw.randint(1, 500), draw.randint(1, 900))
                answers = [await told(store, f"{step}", who, need) for store in stores]
                assert answers[0][1] == answers[1][1]
                said.append(answers[0][0] is not None)
                held = [hold for hold, _ in answers if hold]
                if held:
                    live[f"{step}"] = held
                continue
            hold_id = draw.choice(list(live))
            holds, more = live[hold_id], draw.randint(1, 800)
            used = draw.choice([NOTHING, Used(more, more), Used(more * 3, more)])
            if verb == "settle" and draw.random() < 0.9:
                del live[hold_id]  # otherwise it is settled again some day, or expires
            level, day_us = draw.choice(holds[0].tenant.limits)[0], draw.choice([0, 0, 86_400_000_000])
            for i, (store, hold) in enumerate(zip(stores, holds, strict=True)):
                if verb == "renew":
                    await store.renew([held[i] for held in live.values()])
                elif verb == "restore":
                    await store.restore(hold, level, more * 20, more * 30, clock() + day_us)
                elif verb == "started":
                    await store.started(hold)
                elif verb == "settle":
                    await store.settle(hold, used)
            if verb == "grow":
                grew = [await s.grow(h, h.output_tokens + more, h.need.cost + more) for s, h in
                        zip(stores, holds, strict=True)]  # fmt: skip
                assert grew[0] == grew[1]
    finally:
        for store in stores:
            await store.close()
    assert set(said) == {True, False}, "a run in which everything or nothing passes shows little"
