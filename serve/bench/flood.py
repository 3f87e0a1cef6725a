"""A flood of requests, from a process of its own so that whoever is measured beside it has a client to itself.

A line of JSON in: address, key, path, body, how many per second, for how many seconds. One out: how many were sent, how
long it took, and how many ended how.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from serve.bench.client import Client, Request
from serve.bench.stream import Sample

AT_ONCE = 64  # a server that is slower than the plan is not buried under it


async def flood(task: Mapping[str, Any]) -> dict[str, Any]:
    request, ended = Request(task["path"], task["body"]), Counter[str]()
    planned = int(task["rate_s"] * task["for_s"])
    began, numbers = time.perf_counter(), iter(range(planned))

    async def sender(client: Client) -> None:
        for number in numbers:
            due = began + number / task["rate_s"]
            now = time.perf_counter()
            if now > began + task["for_s"]:
                return
            await asyncio.sleep(max(0.0, due - now))
            sample = Sample("flood", due)
            await client.send(request, sample)
            ended[str(sample.code or sample.outcome)] += 1

    async with Client(task["address"], task["key"]) as client, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(sender(client))
    return {"sent": ended.total(), "seconds": time.perf_counter() - began, "ended": dict(ended)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(flood(json.load(sys.stdin)))), flush=True)
