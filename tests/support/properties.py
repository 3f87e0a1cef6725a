"""How many examples hypothesis makes up: the same in every run, so that a failure stays until it is mended."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

FEW, MANY = 100, 2000  # in `make test`; with the mark `full`


def examples(number: int) -> settings:
    """Slow examples are no failure, and those of one test may share its fixtures: each looks only at what it did."""
    return settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        print_blob=False,
    )
