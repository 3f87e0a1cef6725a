"""What the fair queue costs an engine: one engine in a process of its own, answering the same jobs under each policy.

JSON on standard input, a JSON line per run out. Policies take turns on the same engine, because two deployments started
one after the other differ by more than queues do.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from serve.bench.closed import answer_all
from serve.engines.turns import Turns
from serve.engines.vllm import VllmEngine
from serve.model_settings import Model, Queue
from serve.settings import parse
from serve.words import Job, Sampling, Secret, Share

ARMS = {"fair": Queue(), "fcfs": Queue(policy="fcfs"), "fair, reserve 1": Queue(reserve=1)}
_PROMPT, _OUTPUT, _LIGHT_OUTPUT = 64, (64, 192), 32


async def measure(task: Mapping[str, Any]) -> None:
    """`task`: settings with one model, its folder, `vocabulary`, and `rounds` of each arm."""
    (given,) = parse(task["settings"]).models
    places = given.engine.max_num_seqs
    room = given.engine.model_copy(update={"queue": ARMS["fair, reserve 1"]})  # the core has the place under each arm
    model: Model = given.model_copy(update={"engine": room})
    engine = VllmEngine(model, Path(task["folder"]))
    try:
        await engine.warm_up()
        jobs = _jobs(random.Random(0), int(task["vocabulary"]), 6 * places)
        await _run(Turns(engine, ARMS["fair"], places), jobs[: 2 * places])
        for number in range(task["rounds"]):
            for at in range(len(ARMS)):
                name = list(ARMS)[(at + number) % len(ARMS)]
                found = await _run(Turns(engine, ARMS[name], places), jobs)
                print(json.dumps({"arm": name, **found}), flush=True)
    finally:
        engine.stop()


def _jobs(draw: random.Random, vocabulary: int, number: int) -> list[Job]:
    """Of two tenants, and of lengths that differ, so that answers do not begin and end together."""
    return [
        Job(
            str(at),
            tuple(draw.randrange(1, vocabulary) for _ in range(_PROMPT)),
            Sampling(max_tokens=draw.randint(*_OUTPUT), temperature=0.0, top_p=1.0, ignore_eos=True),
            Secret(""),
            share=Share("heavy" if at % 4 else "light"),
        )
        for at in range(number)
    ]


async def _run(turns: Turns, jobs: Sequence[Job]) -> dict[str, float]:
    """All jobs at once, beside somebody in band interactive who asks one at a time."""
    salt, made = Secret(f"{time.monotonic_ns()}"), 0

    async def one_at_a_time() -> None:
        nonlocal made
        for at in count():
            sampling = replace(jobs[0].sampling, max_tokens=_LIGHT_OUTPUT)
            share = Share("interactive", band="interactive")
            job = replace(jobs[0], job_id=f"{salt.reveal()}-i{at}", cache_salt=salt, sampling=sampling, share=share)
            async for event in turns.generate(job):
                made += len(event.token_ids)

    fresh = [replace(job, job_id=f"{salt.reveal()}-{job.job_id}", cache_salt=salt) for job in jobs]
    began, cpu = time.monotonic(), time.process_time()
    asking = asyncio.create_task(one_at_a_time())
    answers = await answer_all(turns, fresh)
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    tokens = made + sum(answer.output_tokens for answer in answers)
    return {"output_tokens_s": tokens / wall_s, "cpu_us_per_token": 1e6 * cpu_s / tokens, "interactive": made}


if __name__ == "__main__":
    asyncio.run(measure(json.load(sys.stdin)))
