"""The fair queue in front of an engine, at work: turns, limits of the queue, and whoever leaves it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest

from serve.engines.fake import FakeEngine
from serve.engines.turns import Turns
from serve.errors import EngineLost, Overloaded, QueueFull, QueueTimeout, ServeError
from serve.fairshare import FairShare
from serve.model_settings import Queue
from serve.words import Event, Job
from tests.support.queued import ended, job, until


class Line:
    """Turns over the engine with known times, and who got answers in which order."""

    def __init__(self, places: int = 1, engine: FakeEngine | None = None, **queue: Any) -> None:
        self.engine = engine or FakeEngine(tpot_s=0.002)
        self.turns = Turns(self.engine, Queue(**queue), places)
        self.finished = list[str]()
        self.tokens = Counter[str]()

    async def ask(self, job: Job) -> list[Event]:
        async with aclosing(self.turns.generate(job)) as events:
            got = list[Event]()
            async for event in events:
                self.tokens[job.share.tenant_id] += len(event.token_ids)
                got.append(event)
        self.finished.append(job.share.tenant_id)
        return got

    def send(self, job: Job) -> asyncio.Task[list[Event]]:
        return asyncio.create_task(self.ask(job))

    async def in_line(self, waiting: int) -> None:
        await until(lambda: self.turns.waiting == waiting)

    async def holding(self, **changes: Any) -> asyncio.Task[list[Event]]:
        """One long job at work, so that what follows must wait."""
        held = self.send(job("holder", tokens=10_000, **changes))
        await until(lambda: self.turns.at_work > 0)
        return held

    def is_empty(self) -> bool:
        return self.turns.waiting == 0 and self.turns.at_work == 0 and not self.engine.running


async def test_a_light_tenant_goes_before_the_rest_of_a_flood() -> None:
    line = Line()
    held = await line.holding()
    flood = [line.send(job("flood")) for _ in range(20)]
    await line.in_line(20)
    light = line.send(job("light"))
    await line.in_line(21)
    await ended(held)
    await light
    assert line.finished.count("flood") <= 1
    await asyncio.gather(*flood)
    assert line.is_empty()


async def test_in_order_of_arrival_the_same_flood_goes_first() -> None:
    line = Line(policy="fcfs")
    held = await line.holding()
    flood = [line.send(job("flood")) for _ in range(20)]
    await line.in_line(20)
    light = line.send(job("light"))
    await ended(held)
    await asyncio.gather(light, *flood)
    assert line.finished == ["flood"] * 20 + ["light"]


@pytest.mark.parametrize("weight", [1.0, 3.0])
async def test_two_that_always_wait_get_tokens_by_their_weights(weight: float) -> None:
    line, made = Line(places=4), 0

    async def keep_asking(tenant: str, tokens: int, weight: float) -> None:
        while True:
            await line.ask(job(tenant, tokens, weight))

    line.turns.evenness()
    heavy = [asyncio.create_task(keep_asking("heavy", 40, weight)) for _ in range(16)]
    light = [asyncio.create_task(keep_asking("light", 5, 1.0)) for _ in range(16)]
    async with asyncio.timeout(20):
        while made < 6000:
            await asyncio.sleep(0.01)
            if made < 500 <= line.tokens.total():
                assert line.turns.evenness() is None  # they began to wait in this window
            made = line.tokens.total()
    evenness = line.turns.evenness()
    assert evenness is not None
    assert evenness > 0.98
    await ended(*heavy, *light)
    # A prompt of 3 costs as much as 1.5 tokens: per answer 41.5 are charged to one, 6.5 to the other.
    ratio = line.tokens["heavy"] * 41.5 / 40 / (line.tokens["light"] * 6.5 / 5)
    assert ratio == pytest.approx(weight, rel=0.1)
    assert line.is_empty()


async def test_the_engine_is_never_given_more_than_it_has_places_for() -> None:
    line, most = Line(places=4), 0
    asked = [line.send(job("many", tokens=3, n=1 + i % 3)) for i in range(40)]
    while not all(task.done() for task in asked):
        sequences = sum(j.sampling.n for j in line.engine.jobs if j.job_id in line.engine.running)
        most = max(most, sequences)
        await asyncio.sleep(0.0005)
    assert most == 4
    assert line.is_empty()


async def test_a_request_for_more_answers_than_places_takes_them_all() -> None:
    line = Line(places=2)
    assert sum(1 for event in await line.ask(job("wide", n=5)) if event.finish) == 5
    assert line.is_empty()


async def test_the_reserve_is_kept_free_for_interactive_requests() -> None:
    line = Line(places=2, reserve=1)
    busy = [line.send(job("busy", tokens=10_000)) for _ in range(5)]
    await line.in_line(3)
    await line.ask(job("editor", band="interactive"))
    assert line.turns.at_work == 2
    await ended(*busy)
    assert line.is_empty()


async def test_whoever_leaves_before_its_turn_never_reaches_the_engine() -> None:
    line = Line()
    held = await line.holding()
    left = line.send(job("left"))
    await line.in_line(1)
    await ended(left)
    assert line.turns.waiting == 0
    await ended(held)
    assert [j.share.tenant_id for j in line.engine.jobs] == ["holder"]
    assert line.is_empty()


async def test_a_prompt_of_which_nothing_came_is_not_charged() -> None:
    line, policy = Line(engine=FakeEngine(ttft_s=5)), FairShare()
    line.turns = Turns(line.engine, Queue(), 1, policy)
    held = await line.holding()
    assert policy.served("holder") == 3
    await ended(held)
    assert policy.served("holder") == 0
    assert line.is_empty()


async def test_a_prompt_that_is_only_scored_is_charged() -> None:
    line, policy = Line(), FairShare()
    line.turns = Turns(line.engine, Queue(), 1, policy)
    (event,) = await line.ask(job("scorer", tokens=0))
    assert (event.token_ids, event.finish) == ((), "length")
    assert policy.served("scorer") == 3


async def test_the_wait_for_the_turn_is_told_as_queue_time() -> None:
    line = Line()
    held = await line.holding()
    waits = line.send(job("waits"))
    await asyncio.sleep(0.2)
    await ended(held)
    (start,) = [event.start for event in await waits if event.start]
    assert 0.15 < start.queue_s < 5


async def test_a_tenant_with_too_much_in_line_is_refused_and_others_are_not() -> None:
    line = Line(tenant_jobs=3)
    held = await line.holding()
    waiting = [line.send(job("greedy")) for _ in range(3)]
    await line.in_line(3)
    with pytest.raises(QueueFull) as refused:
        await line.ask(job("greedy"))
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert 1 <= (refused.value.retry_after_s or 0) <= 60
    other = line.send(job("modest"))
    await line.in_line(4)
    await ended(held)
    await asyncio.gather(other, *waiting)
    assert line.is_empty()


async def test_a_full_queue_sheds_the_newest_of_whoever_has_most_in_it() -> None:
    line = Line(jobs=4)
    held = await line.holding()
    greedy = [line.send(job("greedy")) for _ in range(4)]
    await line.in_line(4)
    modest = line.send(job("modest"))
    shed = await asyncio.gather(greedy[-1], return_exceptions=True)
    assert isinstance(shed[0], QueueFull)
    with pytest.raises(Overloaded) as refused:
        await line.ask(job("greedy"))  # its own are the most
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    await ended(held)
    await asyncio.gather(modest, *greedy[:-1])
    assert line.is_empty()


async def test_a_wait_that_is_too_long_ends_with_an_error_that_says_when_to_come_back() -> None:
    line = Line(wait_s=0.1)
    held = await line.holding()
    with pytest.raises(QueueTimeout) as refused:
        await line.ask(job("waits"))
    assert (refused.value.status, refused.value.code) == (503, "queue_timeout")
    assert refused.value.retry_after_s
    await ended(held)
    assert line.is_empty()


async def test_what_would_wait_longer_than_it_may_is_refused_at_once_with_the_time_that_it_takes() -> None:
    line = Line(wait_s=2)
    async with asyncio.timeout(10):
        while line.turns.service_per_s is None:  # until the engine's speed is known
            await line.ask(job("learn", tokens=200))
    held = await line.holding()
    outcomes = [line.send(job("greedy", tokens=4000)) for _ in range(20)]
    await asyncio.sleep(0.05)
    refused = [task.exception() for task in outcomes if task.done()]
    assert refused
    assert all(isinstance(e, QueueFull) and (e.retry_after_s or 0) >= 1 for e in refused)
    light = line.send(job("light"))
    await asyncio.sleep(0.05)
    assert not light.done()  # it waits: nothing of its own is in line
    await ended(held, light, *outcomes)
    assert line.is_empty()


async def test_a_dying_engine_leaves_no_place_taken() -> None:
    line = Line(places=2, engine=FakeEngine(fail_after=2))
    outcomes = await asyncio.gather(*(line.ask(job("any")) for _ in range(6)), return_exceptions=True)
    assert all(isinstance(outcome, EngineLost) for outcome in outcomes)
    assert line.is_empty()


async def test_places_and_queue_are_empty_after_a_storm_of_leaving_clients() -> None:
    line = Line(places=3, jobs=20, wait_s=0.05)
    tasks = [line.send(job(f"t{i % 5}", tokens=1 + i % 7, n=1 + i % 2)) for i in range(200)]
    for i, task in enumerate(tasks):
        if i % 3 == 0:
            task.cancel()
        if i % 17 == 0:
            await asyncio.sleep(0.001)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert line.is_empty()
    allowed = (ServeError, asyncio.CancelledError, list)
    assert all(isinstance(outcome, allowed) for outcome in outcomes)
    assert any(isinstance(outcome, list) for outcome in outcomes)
