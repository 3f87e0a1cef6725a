"""`starserve bench ladder`: the same trace against every rung, in rounds (A B A B), and what each rung adds.

Rungs run at once, and only one has work: starting each anew for every round would take most of the time. What the idle
ones use in the meantime is measured. A second stack of ours and the modes of Ray Serve LLM need some 4 GiB each, so
these take turns: each climbs beside the other rungs, in rounds of its own.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.bench.load import run as run_load
from serve.bench.local_model import every_token
from serve.bench.peers import RAY_LLM, lite_llm, ray_llm
from serve.bench.report import machine_conditions
from serve.bench.rungs import Rung, bare, stack, vllm_server
from serve.bench.summary import summary
from serve.bench.trace import Trace
from serve.settings import Settings

Say = Callable[[str], None]
Round = Mapping[str, Any]
FLOOR, BESIDE = "bare engine", "vLLM's server"


@dataclass(frozen=True, slots=True)
class Wall:
    """What the ladder leans on: a deployment with one model, and where that lies prepared."""

    settings: Settings
    cache: Path
    folder: Path  # of the model, in the cache
    peers: Path | None = None  # loadtest/peers of a checkout


def climb(wall: Wall, traces: Sequence[Trace], rounds: int, say: Say) -> dict[str, Any]:
    """The report: per rung its rounds of each trace.

    Raises RuntimeError where a rung does not start or an answer is not whole.
    """
    found = dict[str, list[Round]]()
    with ExitStack() as entered:
        rungs = [entered.enter_context(_started(rung, say)) for rung in (
            bare(wall.settings, wall.folder), vllm_server(wall.settings, wall.folder), stack(wall.settings, wall.cache)
        )]  # fmt: skip
        if wall.peers is not None:
            rungs.append(entered.enter_context(_started(lite_llm(wall.settings, wall.peers, rungs[1]), say)))
        for turn, last in enumerate(_taking_turns(wall)):
            with _started(last, say) as rung:
                for number in range(rounds + 1):  # the first one warms up
                    for told in _of_all([*rungs, rung], traces, turn * (rounds + 1) + number, say):
                        if number:
                            found.setdefault(told["rung"], []).append(told)
    return {"traces": [trace.plain() for trace in traces], "conditions": machine_conditions(), "rungs": found}


def _taking_turns(wall: Wall) -> Iterator[AbstractContextManager[Rung]]:
    uncoalesced = wall.settings.model_copy(update={"models": tuple(map(every_token, wall.settings.models))})
    yield stack(uncoalesced, wall.cache, "starserve, uncoalesced")
    if wall.peers is not None:
        for name in RAY_LLM:
            yield ray_llm(wall.settings, wall.folder, wall.peers, name)


@contextmanager
def _started(rung: AbstractContextManager[Rung], say: Say) -> Iterator[Rung]:
    began = time.monotonic()
    with rung as up:
        say(f"{up.name}: up after {time.monotonic() - began:.0f} s")
        yield up


def _of_all(rungs: Sequence[Rung], traces: Sequence[Trace], number: int, say: Say) -> Iterator[Round]:
    for trace in traces:
        for rung in rungs:
            told = _beside_idle_ones(rung, rungs, trace, number)
            say(f"round {number}, {trace.streams} streams, {rung.name}: {told['output_tokens_s']:.0f} tokens/s, "
                f"{told['cpu_us_per_token']:.0f} µs of serving CPU per token")  # fmt: skip
            yield {"rung": rung.name, "round": number, "streams": trace.streams, **told}


def _beside_idle_ones(rung: Rung, rungs: Sequence[Rung], trace: Trace, seed: int) -> Round:
    idle = [other for other in rungs if other not in (rung, rung.behind) and other.behind is None]
    before, began = sum(sum(other.cpu_s()) for other in idle), time.perf_counter()
    told = _round(rung, trace, seed)
    used = sum(sum(other.cpu_s()) for other in idle) - before
    return {**told, "idle_rungs_cpu": used / (time.perf_counter() - began)}


def _round(rung: Rung, trace: Trace, seed: int) -> Round:
    if not rung.address:
        told = rung.ask({"trace": trace.plain(), "seed": seed})
        outcomes, cpu_s = told["outcomes"], told["cpu_s"]
    else:
        before = rung.cpu_s()[0]
        ran = asyncio.run(run_load(rung.address, [trace.load(rung.key)], trace.for_s, seed))
        cpu_s, numbers = rung.cpu_s()[0] - before, summary(ran)
        outcomes = dict(numbers.all.outcomes)
        told = {"output_tokens": numbers.all.output_tokens, "output_tokens_s": numbers.all.output_tokens_s,
                "tokens_per_message": numbers.all.tokens_per_message, "cached_share": numbers.all.cached_share,
                "times": numbers.all.times, "verdict": numbers.verdict}  # fmt: skip
    if set(outcomes) != {"done"}:
        raise RuntimeError(f"{rung.name}: not every answer was whole: {outcomes}")
    return {**told, "cpu_us_per_token": 1e6 * cpu_s / told["output_tokens"]}


def table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Medians over the rounds; ratios and what is added are medians over pairs of the same round."""
    rows: list[tuple[str, ...]] = [("streams", "rung", "tokens/s", "÷ vLLM's", "CPU µs/token", "TTFT + ms",
                                    "tokens/message", "p99 gap ms")]  # fmt: skip
    for trace in report["traces"]:
        streams = trace["streams"]
        rungs = {n: {t["round"]: t for t in r if t["streams"] == streams} for n, r in report["rungs"].items()}
        for name, told in rungs.items():
            rounds = list(told.values())
            rows.append((
                str(streams), name, f"{_median(map(_rate, rounds)):.0f}",
                f"{_median(_rate(t) / _rate(rungs[BESIDE][n]) for n, t in told.items()):.2f}",
                f"{_median(t['cpu_us_per_token'] for t in rounds):.0f}",
                f"{1000 * _median(_ttft(t) - _ttft(rungs[FLOOR][n]) for n, t in told.items()):.0f}",
                f"{_median(t['tokens_per_message'] for t in rounds):.2f}",
                f"{1000 * _median(t['times']['chunk_gap_s']['p99'] for t in rounds):.0f}",
            ))  # fmt: skip
    return rows


def doubts(report: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know: rounds whose client lagged or was busy, and what idle rungs used."""
    told = [(name, r) for name, rounds in report["rungs"].items() for r in rounds]
    bad = [f"{name}: {r['verdict']}" for name, r in told if r.get("verdict", "VALID") != "VALID"]
    return [*bad, f"rungs without work used up to {max(r['idle_rungs_cpu'] for _, r in told):.2f} of a core"]


def _rate(told: Round) -> float:
    return float(told["output_tokens_s"])


def _ttft(told: Round) -> float:
    return float(told["times"]["ttft_s"]["p50"])


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
