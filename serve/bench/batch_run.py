"""The process of `bench batch` that holds the engine: a line with the start, one with the jobs, one per run."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve.bench.closed import answer_all, mean_batch
from serve.bench.local_model import all_jobs, local_model
from serve.bench.questions import Question
from serve.words import Job, Secret

WARM_UP_TOKENS = 16


async def measure(task: Mapping[str, Any]) -> None:
    began = time.monotonic()
    async with local_model(task) as local:
        _say({"start_s": time.monotonic() - began})
        jobs, tokenise_s = await all_jobs(local, [Question(**q) for q in task["questions"]])
        _say({"tokenise_s": tokenise_s, "jobs": [_plain(job) for job in jobs]})
        await answer_all(local.engine, _warm_up(jobs, int(task["vocabulary"]), int(task["batch"])))
        for _ in range(task["runs"]):
            _say(await _run(local.engine, jobs))


async def _run(engine: Any, jobs: Sequence[Job]) -> dict[str, Any]:
    salt, run = Secret(secrets.token_hex(16)), secrets.token_hex(8)
    fresh = [replace(job, job_id=f"{run}-{place}", cache_salt=salt) for place, job in enumerate(jobs)]
    began = time.monotonic()
    answers = await answer_all(engine, fresh)
    wall_s = time.monotonic() - began
    return {
        "wall_s": wall_s, "requests": len(answers), "mean_batch": max(1.0, mean_batch(answers)),
        "prompt_tokens": sum(a.prompt_tokens for a in answers),
        "cached_tokens": sum(a.cached_tokens for a in answers),
        "output_tokens": sum(a.output_tokens for a in answers), "messages": sum(a.messages for a in answers),
        "ttft_s": statistics.median(a.first_s for a in answers),
        "tpot_s": statistics.median(a.tpot_s for a in answers),
        "computed": [(a.prompt_tokens - a.cached_tokens, a.output_tokens) for a in answers],
    }  # fmt: skip


def _warm_up(jobs: Sequence[Job], vocabulary: int, batch: int) -> list[Job]:
    """Prompts of the same lengths and other words, so that no block of theirs is found in the prefix cache."""
    draw, some = random.Random(0), jobs[:batch]
    return [
        replace(
            job,
            job_id=f"warm-up-{place}",
            cache_salt=Secret("warm-up"),
            prompt_ids=tuple(draw.randrange(1, vocabulary) for _ in job.prompt_ids),
            sampling=replace(job.sampling, max_tokens=min(WARM_UP_TOKENS, job.sampling.max_tokens or 1)),
        )
        for place, job in enumerate(some)
    ]


def _plain(job: Job) -> dict[str, Any]:
    """What another engine needs to answer the same."""
    sampling = job.sampling
    return {
        "prompt_ids": job.prompt_ids, "max_tokens": sampling.max_tokens, "ignore_eos": sampling.ignore_eos,
        "greedy": sampling.temperature == 0 and sampling.n == 1 and not sampling.stop,
    }  # fmt: skip


def _say(finding: Mapping[str, Any]) -> None:
    print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    asyncio.run(measure(json.load(sys.stdin)))
