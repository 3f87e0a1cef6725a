"""When requests are due. Pure and seeded: the same plan each time, whatever the server does."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals: exponential gaps around 1 ÷ `rate_s`."""

    rate_s: float

    def due_s(self, draw: random.Random) -> Iterator[float]:
        return _added(lambda: draw.expovariate(self.rate_s))


@dataclass(frozen=True, slots=True)
class Gamma:
    """Arrivals in bursts: gaps of the same mean with a coefficient of variation `cv`; 1 is Poisson."""

    rate_s: float
    cv: float

    def due_s(self, draw: random.Random) -> Iterator[float]:
        shape = 1 / self.cv**2
        return _added(lambda: draw.gammavariate(shape, 1 / (self.rate_s * shape)))


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded arrivals, seconds after the start."""

    offsets_s: Sequence[float]

    def due_s(self, draw: random.Random) -> Iterator[float]:
        return iter(sorted(self.offsets_s))


@dataclass(frozen=True, slots=True)
class Closed:
    """No arrivals: `users` each send the next request when the last is answered. It hides a slow server's queue.

    `pause_s`: the mean of what a user waits before each request, exponentially distributed.
    """

    users: int
    pause_s: float = 0.0


Arrivals = Poisson | Gamma | Trace | Closed


def _added(gap: Callable[[], float]) -> Iterator[float]:
    due = 0.0
    while True:
        due += gap()
        yield due
