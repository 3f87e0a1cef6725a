"""Work that blocks, off the event loop: a bounded pool of threads for each kind of it, shared fairly by tenants.

Each kind has a pool of its own, so that what promises depend on (that a revoked key is refused, that a body is read)
never waits behind what may take its time. asyncio's own pool is for what happens once or one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from serve.errors import QueueFull

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """At most `threads` pieces of work at a time, and of one tenant fewer.

    A piece may take seconds, and whether it will be refused is known only afterwards. So no tenant ever holds the last
    thread of several, also not by leaving: a piece that has begun keeps its place until it is done.
    """

    def __init__(self, threads: int, name: str, most: int | None = None) -> None:
        """`most`: pieces of one tenant, waiting and in work; more are refused with QueueFull."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._each, self._most = max(1, threads - 1), most
        self._lines = dict[str, _Line]()

    async def run(self, tenant_id: str, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        if (line := self._lines.get(tenant_id)) is None:
            line = self._lines[tenant_id] = _Line(asyncio.Semaphore(self._each))
        if self._most is not None and line.pieces >= self._most:
            raise QueueFull(f"{line.pieces} such requests of yours wait already; try again later", retry_after_s=1)
        line.pieces += 1
        try:
            await line.places.acquire()
        except BaseException:
            self._leave(tenant_id, line)
            raise
        piece = self._threads.submit(partial(work, *arguments, **named))

        def done() -> None:
            line.places.release()
            self._leave(tenant_id, line)

        def tell(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed: no request waits any more
                loop.call_soon_threadsafe(done)

        piece.add_done_callback(tell)
        return await asyncio.wrap_future(piece)

    def _leave(self, tenant_id: str, line: _Line) -> None:
        line.pieces -= 1
        if not line.pieces:
            del self._lines[tenant_id]


@dataclass(slots=True)
class _Line:
    """One tenant's pieces, waiting and in work."""

    places: asyncio.Semaphore
    pieces: int = 0
