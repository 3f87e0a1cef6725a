"""The client's place on a machine that it shares with the server it measures.

An engine on a CPU keeps its cores busy while it works. A client beside it can wait hundreds of milliseconds until it
may run, and would report them as the server's. How long depends on the kernel's grouping of terminals, so it differs
from server to server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def waited_s() -> float:
    """Seconds so far in which this thread was ready to run, but not run. Of Linux's schedstat; 0 without it."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


@contextmanager
def first_in_line() -> Iterator[None]:
    """This thread runs whenever it can, as on a machine of its own. Only root may ask for that; others wait on."""
    before, allowed = os.sched_getscheduler(0), False
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        allowed = True
    try:
        yield
    finally:
        if allowed:
            os.sched_setscheduler(0, before, os.sched_param(0))
