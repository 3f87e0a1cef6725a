"""Keeps a router's tenants up to date, so that a revoked key is refused everywhere within seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from serve.tenants.directory import Tenants
from serve.tenants.rows import Changes
from serve.tenants.store import Store

EVERY_S = 1.0
PATIENCE_S = 5.0  # a database that is silent for so long is away


async def follow(
    tenants: Tenants,
    store: Store,
    on_error: Callable[[str], None],
    every_s: float = EVERY_S,
    patience_s: float = PATIENCE_S,
) -> None:
    """Take what changed, every second, until cancelled. The database is read in a thread, one read at a time.

    The thread is its own: a revoked key must not stay open because other work fills a pool. While the database is
    away the last state stays: `on_error` is told once per outage and once when it is over. It never raises.
    """
    away = False

    def tell_outage(why: str) -> None:
        nonlocal away
        if not away:
            on_error(f"tenants: the database is away ({why}); keys and limits stay as they were until it is back")
        away = True

    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, thread_name_prefix="tenants")
    while True:
        await asyncio.sleep(every_s)
        reading = loop.run_in_executor(thread, store.changes_since, tenants.number)
        done, _ = await asyncio.wait({reading}, timeout=patience_s)
        if not done:
            tell_outage(f"silent for {patience_s:g} s")
        changes = await _result(reading)
        if isinstance(changes, Changes):
            tenants.apply(changes)
            if away:
                on_error("tenants: the database is back")
            away = False
        else:
            tell_outage(type(changes).__name__)


async def _result(reading: asyncio.Future[Changes]) -> Changes | Exception:
    """What was read, or why it was not. Whatever went wrong, following goes on: else no key could be revoked."""
    try:
        return await reading
    except Exception as e:
        return e
