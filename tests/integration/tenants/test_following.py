"""A revoked key is refused by every router within seconds, and a database that is away stops nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from serve.errors import Unauthorized
from serve.lines import Lines
from serve.services import Database
from serve.tenants.development import make_store
from serve.tenants.directory import Tenants
from serve.tenants.following import follow
from serve.tenants.given import KeyGiven
from serve.tenants.rows import Changes
from serve.tenants.store import Store
from tests.support.full_disk import Room
from tests.support.people import bearer, made, router
from tests.support.servers import Postgres, postgres


@asynccontextmanager
async def following(tenants: Tenants, store: Store, every_s: float = 1.0) -> AsyncIterator[list[str]]:
    told = list[str]()
    task = asyncio.create_task(follow(tenants, store, told.append, every_s, patience_s=0.5))
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        store.close()


async def within(seconds: float, reached: object) -> float:
    assert callable(reached)
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def refuses(tenants: Tenants, header: str) -> bool:
    try:
        tenants.identify(header)
    except Unauthorized:
        return True
    return False


async def test_a_revocation_reaches_every_router_within_five_seconds(store: Store, database: Database) -> None:
    key = made(store)
    with store.acting("ann") as acts:
        other = acts.create_key("web", KeyGiven(name="other"))
    routers = [(router(store), Store(store._engine, store.pepper)) for _ in range(3)]
    async with following(*routers[0]), following(*routers[1]), following(*routers[2]):
        with store.acting("ann") as acts:
            acts.remove("key", key.key.key_id)
        took = await within(5, lambda: all(refuses(tenants, bearer(key)) for tenants, _ in routers))
        assert took < 5
        assert not any(refuses(tenants, bearer(other)) for tenants, _ in routers)


class _Away:
    """A store whose database comes and goes."""

    def __init__(self, store: Store) -> None:
        self.real, self.away, self.asked = store, False, 0

    def changes_since(self, number: int) -> Changes:
        self.asked += 1
        if self.away:
            raise ConnectionError("postgresql://user:hunter2@host")
        return self.real.changes_since(number)

    def close(self) -> None:
        pass


async def test_an_outage_is_told_once_and_the_last_state_stays(store: Store) -> None:
    key = made(store)
    tenants, lost = router(store), _Away(store)
    async with following(tenants, lost, 0.01) as told:  # type: ignore[arg-type]
        for outage in (1, 2):
            lost.away = True
            await within(5, lambda n=outage: len(told) == 2 * n - 1)
            asked = lost.asked
            await within(5, lambda a=asked: lost.asked > a + 3)
            assert tenants.identify(bearer(key)).tenant_id == "web"
            lost.away = False
            await within(5, lambda n=outage: len(told) == 2 * n)
    assert "ConnectionError" in told[0]
    assert told[1] == told[3] == "tenants: the database is back"
    assert "hunter2" not in "".join(told)


async def test_a_log_that_cannot_be_written_ends_no_following_and_is_told_later(store: Store) -> None:
    key, told, full = made(store), list[str](), threading.Event()
    tenants, lost = router(store), _Away(store)
    log = Lines(Room(full, told), str, again_s=0.05)
    full.set()
    lost.away = True
    task = asyncio.create_task(follow(tenants, lost, log.write, 0.01))  # type: ignore[arg-type]
    await within(5, lambda: lost.asked > 3)
    lost.away = False
    with store.acting("ann") as acts:
        acts.remove("key", key.key.key_id)
    await within(5, lambda: refuses(tenants, bearer(key)))
    assert told == []
    full.clear()
    await within(5, lambda: len(told) == 2)
    assert told[1] == "tenants: the database is back"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(scope="module")
def mortal() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


async def test_a_database_that_hangs_or_dies_neither_stops_the_router_nor_keeps_a_revocation(
    mortal: Postgres, tmp_path: Path
) -> None:
    store = make_store(Database.model_validate({"url": mortal.url}), tmp_path)
    key, tenants = made(store), router(store)
    async with following(tenants, store, 0.05) as told:
        with store._engine.begin() as other:
            other.execute(text("LOCK TABLE tenant_changes IN ACCESS EXCLUSIVE MODE"))  # every reader waits
            await within(10, lambda: len(told) == 1)
            assert "silent" in told[0]
            assert tenants.identify(bearer(key)).tenant_id == "web"
        await within(10, lambda: len(told) == 2)
        mortal.kill()
        await within(10, lambda: len(told) == 3)
        assert tenants.identify(bearer(key)).tenant_id == "web"
        await asyncio.to_thread(mortal.start)
        with store.acting("ann") as acts:
            acts.remove("key", key.key.key_id)
        await within(10, lambda: refuses(tenants, bearer(key)))
        assert told[3:] == ["tenants: the database is back"]
