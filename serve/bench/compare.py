"""`starserve bench compare A B`: is B faster than A? With a confidence interval, or not at all.

Runs are compared on the logarithm of their values by Welch's t, because noise on a machine multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from serve.bench.report import Metric, Report, ReportError

CONFIDENCE = 0.95
FEWEST_RUNS = 3
CACHED_SHARE_APART = 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one metric: B ÷ A with its confidence interval."""

    name: str
    ratio: float
    low: float
    high: float
    says: Literal["faster", "slower", "undecided"]


def compare(a: Report, b: Report, differ: Collection[str] = (), least: float = 0.03) -> list[Verdict]:
    """`differ`: the conditions that are meant to differ, by name. `least`: a smaller change is none.

    ReportError where the two were not measured under the same conditions, or may not be used at all.
    """
    _refuse(a, b, differ)
    return [_verdict(name, metric, b.metrics[name], least) for name, metric in a.metrics.items() if name in b.metrics]


def _refuse(a: Report, b: Report, differ: Collection[str]) -> None:
    for name, report in (("A", a), ("B", b)):
        if report.verdict != "VALID":
            raise ReportError(f"{name} may not be used: {report.verdict}")
    if a.kind != b.kind:
        raise ReportError(f"A is a report of {a.kind}, B of {b.kind}")
    keys = sorted(a.conditions.keys() | b.conditions.keys())
    apart = [k for k in keys if a.conditions.get(k) != b.conditions.get(k)]
    if unmeant := [k for k in apart if k not in differ]:
        told = "; ".join(f"{k}: {a.conditions.get(k)} and {b.conditions.get(k)}" for k in unmeant)
        raise ReportError(f"measured under different conditions ({told}); name what is meant to differ with --differ")
    if unused := [k for k in differ if k not in apart]:
        raise ReportError(f"--differ {unused[0]}: it does not differ")
    if abs(a.cached_share - b.cached_share) > CACHED_SHARE_APART:
        raise ReportError(
            f"the prefix cache held {100 * a.cached_share:.0f} % of A's prompt tokens and "
            f"{100 * b.cached_share:.0f} % of B's: that would be compared, not the engines"
        )


def _verdict(name: str, a: Metric, b: Metric, least: float) -> Verdict:
    from scipy.stats import ttest_ind

    if min(len(a.values), len(b.values)) < FEWEST_RUNS:
        raise ReportError(f"{name}: at least {FEWEST_RUNS} runs of each are needed")
    if min(*a.values, *b.values) <= 0:
        raise ReportError(f"{name}: a value is not above 0")
    logs_a, logs_b = [math.log(v) for v in a.values], [math.log(v) for v in b.values]
    middle = sum(logs_b) / len(logs_b) - sum(logs_a) / len(logs_a)
    if len(set(a.values)) == len(set(b.values)) == 1:
        low = high = middle  # no spread at all: a deterministic instrument
    else:
        interval = ttest_ind(logs_b, logs_a, equal_var=False).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    better_up = a.better == "higher"
    says: Literal["faster", "slower", "undecided"] = "undecided"
    if abs(middle) >= math.log1p(least) and low * high > 0:
        says = "faster" if (middle > 0) == better_up else "slower"
    return Verdict(name, math.exp(middle), math.exp(low), math.exp(high), says)
