"""A clock on the event loop, for tests of what must never hold it."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from types import TracebackType

import psutil

MIB = 1 << 20


class Ticker:
    """Wakes every millisecond. `stood_s`: the longest time for which it could not, `grown_mib`: what was allocated.

    Of a time without a wake-up, the part in which the thread wanted to run and the machine was busy does not count.
    """

    def __init__(self) -> None:
        self.stood_s, self.grown_mib = 0.0, 0.0
        self._process = psutil.Process()

    async def __aenter__(self) -> Ticker:
        gc.collect()
        gc.freeze()  # as a router does when it starts
        self._before = self._process.memory_info().rss
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0.005)
        self.stood_s = 0.0
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.sleep(0.005)  # a standstill at the end is told by the wake-up behind it
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        gc.unfreeze()

    def forget_growth(self) -> None:
        """Memory counts from here: what the first requests leave behind for good is no leak."""
        self._before, self.grown_mib = self._process.memory_info().rss, 0.0

    async def _tick(self) -> None:
        while True:
            began, delayed_s = time.perf_counter(), _run_delay_s()
            await asyncio.sleep(0.001)
            stood_s = time.perf_counter() - began - 0.001 - (_run_delay_s() - delayed_s)
            self.stood_s = max(self.stood_s, stood_s)
            grown = self._process.memory_info().rss - self._before
            self.grown_mib = max(self.grown_mib, grown / MIB)


def _run_delay_s() -> float:
    """How long this thread has waited for a core so far, as Linux counts it; not, how long for Python's own lock."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
