"""Blocking work in threads: nobody holds the last one, nobody has endless pieces in line."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve.errors import QueueFull
from serve.threads import Threads


async def test_one_tenant_never_holds_the_last_thread_also_not_by_leaving() -> None:
    pool, ended, begun = Threads(2, "test"), threading.Event(), list[int]()

    def long(number: int) -> None:
        begun.append(number)
        assert ended.wait(60)

    try:
        for leaving in (False, True):
            flood = [asyncio.create_task(pool.run("mallory", long, number)) for number in range(20)]
            async with asyncio.timeout(10):
                while not begun:  # noqa: ASYNC110 - a thread tells no loop
                    await asyncio.sleep(0.001)
            if leaving:
                for task in flood:
                    task.cancel()
                await asyncio.gather(*flood, return_exceptions=True)
                flood.append(asyncio.create_task(pool.run("mallory", long, 20)))
            assert await asyncio.wait_for(pool.run("alice", lambda: 7), 10) == 7
            await asyncio.sleep(0.05)
            assert begun == [0]
            ended.set()
            await asyncio.gather(*flood, return_exceptions=True)
            assert begun == ([0, 20] if leaving else list(range(20)))
            begun.clear()
            ended.clear()
    finally:
        ended.set()
    await asyncio.sleep(0.05)
    assert not pool._lines


async def test_a_piece_of_work_that_fails_gives_its_place_back() -> None:
    pool = Threads(1, "test")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await pool.run("acme", lambda: 1 // 0)
    assert await pool.run("other", lambda: 7) == 7


async def test_more_pieces_of_one_tenant_than_may_wait_are_refused_and_others_are_not() -> None:
    pool, ended = Threads(2, "test", most=3), threading.Event()
    pieces = [asyncio.create_task(pool.run("acme", ended.wait, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await pool.run("acme", ended.wait, 60)
    assert await pool.run("other", lambda: 7) == 7
    ended.set()
    assert await asyncio.gather(*pieces) == [True] * 3
    assert await pool.run("acme", lambda: 7) == 7
