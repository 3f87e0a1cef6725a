"""How the processes of one engine wait for each other's messages, on the CPU build.

vLLM's engine core and workers read each other's messages from shared memory, and for a second after each message they
look for the next one without pause (`sched_yield`). A busy engine's second never ends, so each process takes a whole
core while it waits. That fits a server with cores to spare. On few cores it takes them from router and kernels, and on
Linux 6.18 tasks beside two that yield to each other were not run for up to five seconds (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import time

from vllm.distributed.device_communicators import shm_broadcast

LOOK_EVERY_S = 100e-6
_SLACK_NS = 1000  # of a sleep's end; the kernel's own is half of LOOK_EVERY_S
_PR_SET_TIMERSLACK = 29


class PollingCondition(shm_broadcast.SpinCondition):
    """Sleeps between looks where vLLM's own spins. After a second without a message both wait to be woken."""

    def wait(self, timeout_ms: int | None = None) -> None:
        """Return soon: the caller looks whether its message has come, and calls again."""
        # Not woken at once for each message: notes about messages in quick succession get lost, by vLLM's design.
        if time.monotonic() <= self.last_read + self.busy_loop_s:
            time.sleep(LOOK_EVERY_S)
        else:
            super().wait(timeout_ms)


def poll() -> None:
    """Let this process and those that are forked from it wait so."""
    # Threads and processes have the slack of the thread that began them.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)
    shm_broadcast.SpinCondition = PollingCondition
