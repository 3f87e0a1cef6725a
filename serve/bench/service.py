"""What each tenant got of an engine, from a run's samples. Pure.

Service is counted as the fair queue charges it: a prompt token 1, an output token 2, spread evenly from the first token
to the last (after Sheng et al., OSDI 2024). Times are those of the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serve.bench.stream import Sample
from serve.fairshare import OUTPUT_COST, PROMPT_COST


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a run that counts: not its start, nor the end, when the queue runs empty."""

    from_s: float
    until_s: float


def service(samples: Iterable[Sample], window: Window) -> float:
    """What was made in the window. An answer that broke off counts until its last chunk, if its usage is known."""
    got = 0.0
    for sample in samples:
        if sample.first_s is None or sample.last_s is None:
            continue
        began, ended = sample.first_s, max(sample.last_s, sample.first_s + 1e-6)
        overlap = min(ended, window.until_s) - max(began, window.from_s)
        if overlap > 0:
            whole = PROMPT_COST * sample.prompt_tokens + OUTPUT_COST * sample.output_tokens
            got += whole * overlap / (ended - began)
    return got


def output_tokens(samples: Iterable[Sample], window: Window) -> float:
    """Tokens made in the window, spread evenly over each answer's time."""
    made = 0.0
    for sample in samples:
        if sample.first_s is None or sample.last_s is None:
            continue
        ended = max(sample.last_s, sample.first_s + 1e-6)
        overlap = min(ended, window.until_s) - max(sample.first_s, window.from_s)
        made += sample.output_tokens * max(0.0, overlap) / (ended - sample.first_s)
    return made


def least_waiting(samples: Sequence[Sample], window: Window, every_s: float = 0.25) -> list[int]:
    """For each whole second of the window: the fewest requests at once that had been sent and had no token yet."""
    seconds = int(window.until_s - window.from_s)
    marks = round(1 / every_s)
    return [
        min(_waiting(samples, window.from_s + second + mark * every_s) for mark in range(marks))
        for second in range(seconds)
    ]


def _waiting(samples: Sequence[Sample], at_s: float) -> int:
    return sum(1 for s in samples if s.sent_s <= at_s < (s.first_s if s.first_s is not None else s.ended_s))


def at_work(samples: Sequence[Sample], window: Window, every_s: float = 0.05) -> list[int]:
    """How many answers were between their first and last token, at marks in the window."""
    marks = int((window.until_s - window.from_s) / every_s)
    times = [window.from_s + mark * every_s for mark in range(marks)]
    return [
        sum(1 for s in samples if s.first_s is not None and s.last_s is not None and s.first_s <= t < s.last_s)
        for t in times
    ]
