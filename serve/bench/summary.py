"""A run's samples to numbers: per tenant and over all, with percentiles from a sketch, and whether they may be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.bench.load import Ran
from serve.bench.stream import Sample

RELATIVE_ERROR = 0.005  # of every percentile
MOST_LAG_S = 0.010  # p99 of how late a client may send
MOST_WAIT = 0.05  # share of the run in which the client was ready but not run
MOST_CLIENT_CPU = 0.8  # of one core: the client has one thread
MOST_CACHED = 0.01  # share of prompt tokens that may be found cached where every prompt is new
_PERCENTILES = (50, 90, 99)
_TIMES: Mapping[str, Callable[[Sample], float | None]] = {
    "ttft_s": lambda s: s.ttft_s,
    "service_ttft_s": lambda s: s.service_ttft_s,
    "tpot_s": lambda s: s.tpot_s,
    "e2e_s": lambda s: s.e2e_s,
}


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of one tenant, or of all. Rates are per second of the run; times, of answers that are done."""

    requests: int
    outcomes: Mapping[str, int]
    codes: Mapping[str, int]  # of errors
    requests_s: float
    output_tokens_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_per_chunk: float
    tokens_per_message: float
    times: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # name → p50, p90, p99

    @property
    def cached_share(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    all: Numbers
    tenants: Mapping[str, Numbers]
    lag_p99_s: float
    client_cpu: float  # cores
    verdict: str  # VALID, or INVALID and why


def summary(ran: Ran, fresh_prompts: bool = True) -> Summary:
    """`fresh_prompts`: no prompt was sent before, so a warm prefix cache would make the numbers untrue."""
    tenants = sorted({s.tenant for s in ran.samples})
    numbers = _numbers(ran.samples, ran.wall_s)
    lag = _percentiles(max(0.0, s.lag_s) for s in ran.samples).get("p99", 0.0)
    cpu = ran.client_cpu_s / ran.wall_s
    return Summary(
        numbers, {t: _numbers([s for s in ran.samples if s.tenant == t], ran.wall_s) for t in tenants}, lag, cpu,
        _verdict(numbers, lag, ran.client_wait_s / ran.wall_s, cpu, fresh_prompts),
    )  # fmt: skip


def _verdict(numbers: Numbers, lag: float, wait: float, cpu: float, fresh_prompts: bool) -> str:
    if lag > MOST_LAG_S:
        return f"INVALID: the client lagged (p99 {1000 * lag:.0f} ms behind its plan)"
    if wait > MOST_WAIT:
        return f"INVALID: the client was not run when it was ready ({100 * wait:.0f} % of the time); measure as root"
    if cpu > MOST_CLIENT_CPU:
        return f"INVALID: the client was busy ({100 * cpu:.0f} % of a core)"
    if fresh_prompts and numbers.cached_share > MOST_CACHED:
        return f"INVALID: the prefix cache was warm ({100 * numbers.cached_share:.0f} % of prompts meant as new)"
    return "VALID"


def _numbers(samples: Sequence[Sample], wall_s: float) -> Numbers:
    done = [s for s in samples if s.outcome == "done"]
    tokens = sum(s.output_tokens for s in done)
    chunks, messages = sum(s.chunks for s in done), sum(s.messages for s in done)
    times: dict[str, Mapping[str, float]] = {
        name: _percentiles(t for s in done if (t := of(s)) is not None) for name, of in _TIMES.items()
    }
    times["chunk_gap_s"] = _percentiles(gap for s in done for gap in s.gaps_s)
    return Numbers(
        len(samples), _counted(s.outcome for s in samples), _counted(s.code for s in samples if s.code),
        len(done) / wall_s, tokens / wall_s, sum(s.prompt_tokens for s in done), sum(s.cached_tokens for s in done),
        tokens, tokens / chunks if chunks else 0.0, tokens / messages if messages else 0.0, times,
    )  # fmt: skip


def _counted(names: Iterable[str]) -> dict[str, int]:
    counts = dict[str, int]()
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _percentiles(values: Iterable[float]) -> dict[str, float]:
    from ddsketch import DDSketch

    sketch: Any = DDSketch(RELATIVE_ERROR)
    for value in values:
        sketch.add(value)
    if not sketch.count:
        return {}
    return {f"p{p}": float(sketch.get_quantile_value(p / 100)) for p in _PERCENTILES}
