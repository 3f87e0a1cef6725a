"""`starserve bench ladder`: the same trace against every rung, in rounds (A B A B), and what each rung adds.

All rungs run at once, and only one has work: starting each anew for every round would take most of the time.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from serve.bench.load import run as run_load
from serve.bench.report import machine_conditions
from serve.bench.rungs import Rung, bare, stack, vllm_server
from serve.bench.summary import summary
from serve.bench.trace import Trace
from serve.settings import Settings

Say = Callable[[str], None]
Round = Mapping[str, Any]


def climb(settings: Settings, config: Path, folder: Path, trace: Trace, rounds: int, say: Say) -> dict[str, Any]:
    """The report: per rung its rounds. RuntimeError where a rung does not start or an answer is not whole."""
    with ExitStack() as started:
        rungs = list[Rung]()
        for starting in (bare(settings, folder), vllm_server(settings, folder), stack(settings, config)):
            say(f"starting rung {len(rungs) + 1} of 3")
            rungs.append(started.enter_context(starting))
        found: dict[str, list[Round]] = {rung.name: [] for rung in rungs}
        for number in range(rounds + 1):  # the first one warms up
            for rung in rungs:
                told = _round(rung, trace, number)
                if number:
                    found[rung.name].append(told)
                    say(f"round {number} of {rounds}, {rung.name}: {told['output_tokens_s']:.0f} tokens/s, "
                        f"{told['cpu_us_per_token']:.0f} µs of serving CPU per token")  # fmt: skip
    return {"trace": trace.plain(), "conditions": machine_conditions(), "rungs": found}


def _round(rung: Rung, trace: Trace, seed: int) -> Round:
    if not rung.address:
        told = rung.ask({"trace": trace.plain(), "seed": seed})
        outcomes, cpu_s = told["outcomes"], told["cpu_s"]
    else:
        before = rung.serving_cpu_s()
        ran = asyncio.run(run_load(rung.address, [trace.load(rung.key)], trace.for_s, seed))
        cpu_s, numbers = rung.serving_cpu_s() - before, summary(ran)
        outcomes = dict(numbers.all.outcomes)
        told = {"output_tokens": numbers.all.output_tokens, "output_tokens_s": numbers.all.output_tokens_s,
                "tokens_per_chunk": numbers.all.tokens_per_chunk, "cached_share": numbers.all.cached_share,
                "times": numbers.all.times, "verdict": numbers.verdict}  # fmt: skip
    if set(outcomes) != {"done"}:
        raise RuntimeError(f"{rung.name}: not every answer was whole: {outcomes}")
    return {**told, "cpu_us_per_token": 1e6 * cpu_s / told["output_tokens"]}


def table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Medians over the rounds; TTFT added is over the engine in process."""
    rows: list[tuple[str, ...]] = [("rung", "tokens/s", "÷ vLLM's server", "CPU µs/token", "TTFT added ms",
                                    "tokens/chunk", "p99 chunk gap ms")]  # fmt: skip
    rungs = report["rungs"]
    floor = _median(rungs["bare engine"], _ttft)
    beside = _median(rungs["vLLM's server"], lambda r: r["output_tokens_s"])
    for name, rounds in rungs.items():
        rate = _median(rounds, lambda r: r["output_tokens_s"])
        rows.append((
            name, f"{rate:.0f}", f"{rate / beside:.2f}", f"{_median(rounds, lambda r: r['cpu_us_per_token']):.0f}",
            f"{1000 * (_median(rounds, _ttft) - floor):.1f}", f"{_median(rounds, lambda r: r['tokens_per_chunk']):.2f}",
            f"{1000 * _median(rounds, lambda r: r['times']['chunk_gap_s']['p99']):.1f}",
        ))  # fmt: skip
    return rows


def _ttft(told: Round) -> float:
    return float(told["times"]["ttft_s"]["p50"])


def _median(rounds: Sequence[Round], of: Callable[[Round], float]) -> float:
    return statistics.median(of(told) for told in rounds)
