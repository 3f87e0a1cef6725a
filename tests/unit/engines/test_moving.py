"""Jobs given back: how many, which, and what they keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from serve.engines.assembly import assemble
from serve.engines.fake import FakeEngine
from serve.engines.moving import Moved, Room, gifts, keep_moving
from serve.errors import QueueTimeout
from serve.model_settings import Queue
from serve.words import Event, Job
from tests.support.queued import ended, job, until


class Replicas:
    """Two lines, each over an engine with known times, and a router that sends what is given back to the other."""

    def __init__(self, places: int = 1, **queue: float) -> None:
        settings = Queue.model_validate(queue)
        replicas = {name: assemble(FakeEngine(tpot_s=0.002), settings, places, lambda tokens: None) for name in "ab"}
        self.lines = {name: replica.turns for name, replica in replicas.items()}
        self.engines = {name: replica.receipts for name, replica in replicas.items()}
        self.announced = set(self.lines)
        self.moves: list[tuple[str, str | None]] = []
        self.finished: list[str] = []

    async def generate(self, at: str, job: Job) -> AsyncGenerator[Event, None]:
        while True:
            try:
                async with aclosing(self.engines[at].generate(job)) as events:
                    async for event in events:
                        yield event
                return
            except Moved as e:
                self.moves.append((job.job_id, e.toward))
                job = replace(job, waited_s=e.waited_s, toward=e.toward)
                at = e.toward or ("b" if at == "a" else "a")

    async def ask(self, at: str, job: Job) -> list[Event]:
        async with aclosing(self.generate(at, job)) as stream:
            events = [event async for event in stream]
        self.finished.append(job.job_id)
        return events

    def send(self, at: str, job: Job) -> asyncio.Task[list[Event]]:
        return asyncio.create_task(self.ask(at, job))

    async def hold(self, at: str) -> asyncio.Task[list[Event]]:
        held = self.send(at, job("holder", tokens=10_000))
        await until(lambda: self.lines[at].at_work == 1)
        return held

    async def rooms(self) -> dict[str, Room]:
        return {name: self.lines[name].room() for name in self.announced}


@pytest.mark.parametrize(
    ("rooms", "found"),
    [
        ({"a": Room(0, 9), "b": Room(0, 3)}, {}),
        ({"a": Room(2, 0), "b": Room(2, 0)}, {}),
        ({"a": Room(0, 9), "b": Room(4, 0)}, {"b": 4}),
        ({"a": Room(0, 1), "b": Room(4, 0), "c": Room(1, 0)}, {"b": 4, "c": 1}),
        ({"a": Room(0, 2), "b": Room(4, 0), "c": Room(0, 6)}, {"b": 1}),
        ({"a": Room(0, 6), "b": Room(4, 0), "c": Room(0, 2)}, {"b": 3}),
        ({"a": Room(0, 5), "b": Room(1, 0), "c": Room(0, 6)}, {}),
        ({"a": Room(0, 6), "b": Room(1, 0), "c": Room(0, 6)}, {"b": 1}),
    ],
)
def test_what_is_free_is_shared_by_the_lengths_of_the_lines(rooms: dict[str, Room], found: dict[str, int]) -> None:
    assert gifts("a", rooms) == found


def test_givers_that_know_the_same_never_give_more_than_is_free() -> None:
    rooms = {"a": Room(0, 5), "b": Room(0, 4), "c": Room(0, 3), "d": Room(7, 0), "e": Room(2, 0)}
    given = [gifts(name, rooms) for name in rooms]
    assert {name: sum(gift.get(name, 0) for gift in given) for name in "de"} == {"d": 7, "e": 2}


def test_one_that_leaves_gives_everything_unless_nobody_is_there_to_take_it() -> None:
    (gift,) = gifts("a", {"b": Room(0, 40)}).items()
    assert gift[0] is None
    assert gift[1] >= 8192
    assert gifts("a", {}) == {}


async def test_jobs_that_wait_where_another_replica_has_room_are_answered_there() -> None:
    replicas = Replicas()
    held = await replicas.hold("a")
    waits = [replicas.send("a", job("waits")) for _ in range(3)]
    await until(lambda: replicas.lines["a"].waiting == 3)
    moving = asyncio.create_task(keep_moving(replicas.lines["a"], "a", replicas.rooms))
    answers = await asyncio.wait_for(asyncio.gather(*waits), 20)
    assert all(events[-1].usage for events in answers)
    assert {toward for _, toward in replicas.moves} == {"b"}
    assert replicas.lines["a"].moved == len(replicas.moves) == 3
    await ended(held, moving)


async def test_those_go_whose_turn_would_come_next_and_no_more_than_there_is_room_for() -> None:
    replicas = Replicas()
    held = await replicas.hold("a")
    line = replicas.lines["a"]
    flood = [job("flood") for _ in range(3)]
    light = job("light")
    tasks = [replicas.send("a", asked) for asked in flood[:1]]
    await until(lambda: line.waiting == 1)
    tasks += [replicas.send("a", asked) for asked in (*flood[1:], light)]
    await until(lambda: line.waiting == 4)
    line.give_back(2, "b")
    await until(lambda: len(replicas.moves) == 2)
    assert {asked for asked, _ in replicas.moves} == {flood[0].job_id, light.job_id}
    assert line.waiting == 2
    await ended(held, *tasks)


async def test_a_job_that_was_given_back_keeps_its_time_of_arrival_and_goes_before_younger_ones() -> None:
    replicas = Replicas()
    held = [await replicas.hold(at) for at in "ab"]
    older, younger = job("same"), job("same")
    tasks = [replicas.send("a", older)]
    await until(lambda: replicas.lines["a"].waiting == 1)
    await asyncio.sleep(0.05)
    tasks.append(replicas.send("b", younger))
    await until(lambda: replicas.lines["b"].waiting == 1)
    replicas.lines["a"].give_back(1, None)
    await until(lambda: replicas.lines["b"].waiting == 2)
    await ended(held[1])
    first, _ = await asyncio.gather(*tasks)
    assert replicas.finished == [older.job_id, younger.job_id]
    assert first[0].start
    assert first[0].start.queue_s >= 0.05
    await ended(held[0])


async def test_the_longest_wait_counts_from_the_first_line() -> None:
    replicas = Replicas(wait_s=3)
    held = [await replicas.hold(at) for at in "ab"]
    waits = replicas.send("a", job("waits"))
    await until(lambda: replicas.lines["a"].waiting == 1)
    await asyncio.sleep(2)
    replicas.lines["a"].give_back(1, "b")
    began = asyncio.get_running_loop().time()
    with pytest.raises(QueueTimeout):
        await waits
    assert asyncio.get_running_loop().time() - began < 2.5
    await ended(*held)


async def test_what_was_let_in_is_not_refused_by_a_full_line_elsewhere() -> None:
    replicas = Replicas(tenant_jobs=1)
    held = [await replicas.hold(at) for at in "ab"]
    tasks = [replicas.send(at, job("same")) for at in "ab"]
    await until(lambda: all(line.waiting == 1 for line in replicas.lines.values()))
    replicas.lines["a"].give_back(1, "b")
    await until(lambda: replicas.lines["b"].waiting == 2)
    await ended(*held)
    assert all(events[-1].usage for events in await asyncio.gather(*tasks))


async def test_a_replica_that_leaves_gives_all_its_line_away_and_knows_nothing_of_it_any_more() -> None:
    replicas = Replicas()
    held = [await replicas.hold(at) for at in "ab"]
    asked = [job(tenant) for tenant in ("x", "y", "x")]
    tasks = [replicas.send("a", one) for one in asked]
    await until(lambda: replicas.lines["a"].waiting == 3)
    replicas.announced.remove("a")
    moving = asyncio.create_task(keep_moving(replicas.lines["a"], "a", replicas.rooms))
    await until(lambda: replicas.lines["b"].waiting == 3)
    ids = [one.job_id for one in asked]
    assert await replicas.engines["a"].counted(ids) == {}
    assert set(await replicas.engines["b"].counted(ids)) == set(ids)
    await ended(held[1])
    await asyncio.gather(*tasks)
    counted = await replicas.engines["b"].counted(ids)
    assert {one.usage.completion_tokens for one in counted.values()} == {4}
    await ended(held[0], moving)


async def test_moving_costs_a_tenant_nothing_of_its_share() -> None:
    replicas = Replicas()
    held = await replicas.hold("a")
    line = replicas.lines["a"]
    rich = [replicas.send("a", job("moved", prompt=500)) for _ in range(2)]
    await until(lambda: line.waiting == 2)
    line.give_back(1, "b")
    plain = replicas.send("a", job("other", prompt=500))
    await until(lambda: line.waiting == 2)
    await ended(held)
    await asyncio.gather(*rich, plain)
    assert replicas.finished[-1].startswith("other")  # both stood at nothing, and "moved" had come before


async def test_where_nobody_can_be_asked_those_who_wait_wait_on() -> None:
    replicas = Replicas()
    held = await replicas.hold("a")
    waits = replicas.send("a", job("waits"))
    asked = asyncio.Event()

    async def nobody() -> dict[str, Room]:
        asked.set()
        raise TimeoutError

    moving = asyncio.create_task(keep_moving(replicas.lines["a"], "a", nobody))
    await asyncio.wait_for(asked.wait(), 5)
    await asyncio.sleep(0)
    assert not moving.done()
    assert replicas.lines["a"].waiting == 1
    await ended(held)
    assert (await waits)[-1].usage
    await ended(moving)


async def test_a_client_that_leaves_in_the_moment_of_a_move_leaves_nothing_behind() -> None:
    replicas = Replicas()
    held = await replicas.hold("a")
    waits = replicas.send("a", job("leaves"))
    await until(lambda: replicas.lines["a"].waiting == 1)
    replicas.lines["a"].give_back(1, "b")
    await ended(waits)
    assert replicas.lines["a"].waiting == replicas.lines["b"].waiting == replicas.lines["b"].at_work == 0
    await ended(held)
    assert replicas.lines["a"].at_work == 0
