"""Plans of arrivals."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise

import pytest

from serve.bench.arrivals import Gamma, Poisson


def test_plans_are_the_same_for_a_seed_and_have_the_asked_rate_and_spread() -> None:
    def gaps(arrivals: Poisson | Gamma, seed: int) -> list[float]:
        due = arrivals.due_s(random.Random(seed))
        times = [0.0, *(next(due) for _ in range(20_000))]
        return [b - a for a, b in pairwise(times)]

    for arrivals, spread in ((Poisson(10), 1.0), (Gamma(10, 3), 3.0), (Gamma(10, 0.5), 0.5)):
        found = gaps(arrivals, 0)
        assert found == gaps(arrivals, 0) != gaps(arrivals, 1)
        assert statistics.mean(found) == pytest.approx(0.1, rel=0.08)
        assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(spread, rel=0.1)
