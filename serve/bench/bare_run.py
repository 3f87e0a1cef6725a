"""The lowest rung: the engine in this process, without HTTP. A line of JSON in for each round, one out."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from contextlib import aclosing
from typing import Any

from serve.bench.load import Ran
from serve.bench.local_model import LocalModel, local_model
from serve.bench.stream import Sample
from serve.bench.summary import summary
from serve.bench.trace import Trace
from serve.words import Job, Sampling, Secret


async def rounds() -> None:
    lines = asyncio.to_thread
    task: dict[str, Any] = json.loads(await lines(sys.stdin.readline))
    async with local_model(task) as local:
        print(json.dumps({"ready": True}), flush=True)
        while line := await lines(sys.stdin.readline):
            told = json.loads(line)
            ran = await _round(local, Trace(**told["trace"]), int(told["seed"]))
            found = summary(ran)
            cpu = {"cpu_s": ran.client_cpu_s}
            print(json.dumps({**_plain(found.all), **cpu, "wall_s": ran.wall_s}), flush=True)


async def _round(local: LocalModel, trace: Trace, seed: int) -> Ran:
    samples, draw = list[Sample](), random.Random(f"{seed}/bare")
    sampling = Sampling(max_tokens=trace.output, temperature=0.0, top_p=1.0, ignore_eos=True)
    began, cpu = time.perf_counter(), time.process_time()

    async def user() -> None:
        while time.perf_counter() < began + trace.for_s:
            job = Job(f"bare-{draw.getrandbits(64):x}", tuple(trace.ids(draw)), sampling, Secret(f"bare-{seed}"))
            samples.append(await _one(local, job))

    async with asyncio.TaskGroup() as group:
        for _ in range(trace.streams):
            group.create_task(user())
    return Ran(samples, began, time.perf_counter() - began, time.process_time() - cpu)


async def _one(local: LocalModel, job: Job) -> Sample:
    sample = Sample("bare", time.perf_counter())
    sample.sent_s = sample.intended_s
    async with aclosing(local.engine.generate(job)) as events:
        async for event in events:
            now = time.perf_counter()
            if sample.last_s is None:
                sample.first_s = now
            else:
                sample.gaps_s.append(now - sample.last_s)
            sample.last_s, sample.chunks, sample.messages = now, sample.chunks + 1, sample.messages + 1
            if event.usage:
                sample.prompt_tokens, sample.output_tokens = event.usage.prompt_tokens, event.usage.completion_tokens
                sample.cached_tokens, sample.outcome = event.usage.cached_tokens, "done"
    sample.ended_s = time.perf_counter()
    return sample


def _plain(numbers: Any) -> dict[str, Any]:
    return {
        "outcomes": numbers.outcomes, "output_tokens": numbers.output_tokens,
        "output_tokens_s": numbers.output_tokens_s, "tokens_per_message": numbers.tokens_per_message,
        "cached_share": numbers.cached_share, "times": numbers.times,
    }  # fmt: skip


if __name__ == "__main__":
    asyncio.run(rounds())
