"""What the fair queue costs an engine: one engine in a process of its own, under the same load with each policy.

JSON on standard input, a JSON line per run out. Policies take turns on the same engine, because two deployments started
one after the other differ by more than queues do.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping
from contextlib import aclosing
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from serve.engines.turns import Turns
from serve.engines.vllm import VllmEngine
from serve.model_settings import Queue
from serve.settings import parse
from serve.words import Job, Sampling, Secret, Share


class Arm(NamedTuple):
    """`interactive`: somebody in that band asks besides, one at a time."""

    queue: Queue
    interactive: bool = False


_RESERVED = "fair, reserve 1, beside interactive"
ARMS = {
    "fair": Arm(Queue()),
    "fcfs": Arm(Queue(policy="fcfs")),
    "fair, beside interactive": Arm(Queue(), True),
    _RESERVED: Arm(Queue(reserve=1), True),
}
_PROMPT, _OUTPUT, _LIGHT_OUTPUT = 64, (64, 192), 32


class Made:
    """What all who ask got of the engine in one run."""

    def __init__(self, turns: Turns, vocabulary: int, seed: int) -> None:
        self._turns, self._vocabulary, self._draw = turns, vocabulary, random.Random(seed)
        self._run, self._ids = Secret(f"{time.monotonic_ns()}"), count()
        self.output_tokens = self.interactive = 0

    async def ask(self, share: Share, output: tuple[int, int]) -> None:
        """One after the other, until cancelled. Lengths differ, so that answers do not begin and end together."""
        while True:
            prompt = tuple(self._draw.randrange(1, self._vocabulary) for _ in range(_PROMPT))
            most = self._draw.randint(*output)
            sampling = Sampling(max_tokens=most, temperature=0.0, top_p=1.0, ignore_eos=True)
            job_id = f"{self._run.reveal()}-{next(self._ids)}"
            async with aclosing(self._turns.generate(Job(job_id, prompt, sampling, self._run, share=share))) as events:
                async for event in events:
                    self.output_tokens += len(event.token_ids)
                    self.interactive += len(event.token_ids) if share.band == "interactive" else 0


async def measure(task: Mapping[str, Any]) -> None:
    """`task`: settings with one model, its folder, `vocabulary`, `rounds` of each arm, and `seconds` of each run."""
    (given,) = parse(task["settings"]).models
    places = given.engine.max_num_seqs
    room = given.engine.model_copy(update={"queue": ARMS[_RESERVED].queue})  # the core has the place under each arm
    engine = VllmEngine(given.model_copy(update={"engine": room}), Path(task["folder"]))
    vocabulary, seconds = int(task["vocabulary"]), float(task["seconds"])
    try:
        await engine.warm_up()
        await _run(engine, ARMS["fair"], places, vocabulary, seconds, 0)
        for number in range(task["rounds"]):
            for at in range(len(ARMS)):
                name = list(ARMS)[(at + number) % len(ARMS)]
                found = await _run(engine, ARMS[name], places, vocabulary, seconds, number)
                print(json.dumps({"arm": name, **found}), flush=True)
    finally:
        engine.stop()


async def _run(
    engine: VllmEngine, arm: Arm, places: int, vocabulary: int, seconds: float, seed: int
) -> dict[str, float]:
    """Two tenants that always wait, one with three times the other's requests; the first quarter does not count."""
    turns = Turns(engine, arm.queue, places)
    made = Made(turns, vocabulary, seed)
    asking = [asyncio.create_task(made.ask(Share("heavy" if at % 4 else "light"), _OUTPUT)) for at in range(4 * places)]
    if arm.interactive:
        share = Share("interactive", band="interactive")
        asking.append(asyncio.create_task(made.ask(share, (_LIGHT_OUTPUT, _LIGHT_OUTPUT))))
    await asyncio.sleep(seconds / 4)
    before, began, cpu = (made.output_tokens, made.interactive), time.monotonic(), time.process_time()
    await asyncio.sleep(seconds * 3 / 4)
    wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    tokens, interactive = made.output_tokens - before[0], made.interactive - before[1]
    for task in asking:
        task.cancel()
    for ended in await asyncio.gather(*asking, return_exceptions=True):
        if not isinstance(ended, asyncio.CancelledError):
            raise RuntimeError(f"a request failed: {ended}")
    if not tokens:
        raise RuntimeError("the engine made nothing")
    return {"output_tokens_s": tokens / wall_s, "cpu_us_per_token": 1e6 * cpu_s / tokens, "interactive": interactive}


if __name__ == "__main__":
    asyncio.run(measure(json.load(sys.stdin)))
