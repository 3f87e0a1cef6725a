"""One engine with random weights, measured in a process of its own: JSON on standard input, JSON lines out.

Every batch is closed: all its requests are there at once, each prompt is new, and the run ends with the last token.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from serve.bench.closed import Timed, answer_all
from serve.engines.vllm import VllmEngine
from serve.settings import parse
from serve.words import Job, Sampling, Secret


class Point(NamedTuple):
    """A batch size and a prompt length, with the medians of all runs."""

    prompt: int
    batch: int
    output: int
    output_tokens_s: float
    slowest_tokens_s: float
    fastest_tokens_s: float
    ttft_s: float
    tpot_s: float


async def measure(task: Mapping[str, Any]) -> None:
    """Prints what was built, then a point per prompt length and batch."""
    config, any_class = dict(task["shape"]), bool(task["any_class"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        engine_settings = {**task["engine"], "max_num_seqs": max(task["batches"]), "coalesce_ms": 0}
        model = {"name": "shape", "source": {"folder": folder}, "context_tokens": task["context_tokens"],
                 "engine": engine_settings}  # fmt: skip
        began = time.monotonic()
        engine = VllmEngine(parse({"models": [model]}).models[0], Path(folder), dummy=True)
        try:
            await engine.warm_up(any_class)
            ready = time.monotonic() - began
            print(json.dumps({"class": (await engine.report())[0], "start_s": ready}), flush=True)
            for prompt in task["prompts"]:
                for batch in task["batches"]:
                    point = await _point(engine, config["vocab_size"], prompt, batch, task["output"], task["runs"])
                    print(json.dumps(point), flush=True)
        finally:
            engine.stop()


async def _point(engine: VllmEngine, vocabulary: int, prompt: int, batch: int, output: int, runs: int) -> Point:
    await _run(engine, vocabulary, prompt, batch, min(output, 8))  # warms what this size needs
    rates, answers = [], list[Timed]()
    for _ in range(runs):
        began = time.monotonic()
        answers += await _run(engine, vocabulary, prompt, batch, output)
        rates.append(batch * output / (time.monotonic() - began))
    return Point(
        prompt, batch, output, statistics.median(rates), min(rates), max(rates),
        statistics.median(a.first_s for a in answers), statistics.median(a.tpot_s for a in answers),
    )  # fmt: skip


async def _run(engine: VllmEngine, vocabulary: int, prompt: int, batch: int, output: int) -> list[Timed]:
    sampling = Sampling(max_tokens=output, temperature=0.0, top_p=1.0, ignore_eos=True)

    def job() -> Job:
        ids = tuple(random.randrange(1, vocabulary) for _ in range(prompt))
        return Job(f"bench-{random.getrandbits(64):x}", ids, sampling, Secret("bench"))

    return await answer_all(engine, [job() for _ in range(batch)])


if __name__ == "__main__":
    asyncio.run(measure(json.load(sys.stdin)))
