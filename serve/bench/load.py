"""The open-loop dispatcher: requests of tenants are due at planned times, whether or not earlier ones are answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from serve.bench.arrivals import Arrivals, Closed
from serve.bench.client import Client, Request
from serve.bench.scheduling import first_in_line, waited_s
from serve.bench.stream import Sample


@dataclass(frozen=True, slots=True)
class Load:
    """What one tenant sends. `requests` draws the next request; `key` opens the server for it."""

    tenant: str
    arrivals: Arrivals
    requests: Callable[[random.Random], Request]
    key: str = ""
    address: str = ""  # of a server of its own; else that of the run


@dataclass(frozen=True, slots=True)
class Ran:
    """All requests of a run that were due, and what the client itself took. Times are `time.perf_counter`'s."""

    samples: Sequence[Sample]
    began_s: float
    wall_s: float  # from the first due time to the last answer
    client_cpu_s: float
    client_wait_s: float = 0.0  # ready to run, but the machine ran something else


async def run(
    address: str, loads: Sequence[Load], for_s: float, seed: int, most: int | None = None, cut: bool = False
) -> Ran:
    """Send for `for_s` seconds (or `most` requests of each tenant), then wait for the answers; or `cut` them off.

    A load may have an address of its own.
    """
    samples, cpu, waited = list[Sample](), time.process_time(), waited_s()
    async with AsyncExitStack() as stack:
        stack.enter_context(first_in_line())
        clients = [await stack.enter_async_context(Client(load.address or address, load.key)) for load in loads]
        began = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(for_s if cut else None), asyncio.TaskGroup() as group:
                for load, client in zip(loads, clients, strict=True):
                    draw = random.Random(f"{seed}/{load.tenant}")
                    if isinstance(load.arrivals, Closed):
                        for _ in range(load.arrivals.users):
                            group.create_task(_user(load, client, draw, began + for_s, most, samples))
                    else:
                        group.create_task(_planned(load, client, draw, began, for_s, most, samples))
    wall_s = time.perf_counter() - began
    return Ran(samples, began, wall_s, time.process_time() - cpu, waited_s() - waited)


async def _planned(
    load: Load, client: Client, draw: random.Random, began: float, for_s: float, most: int | None,
    samples: list[Sample],
) -> None:  # fmt: skip
    assert not isinstance(load.arrivals, Closed)
    # Bodies have a source of chance of their own, so that the times do not depend on them.
    words = random.Random(draw.random())
    async with asyncio.TaskGroup() as group:
        for number, due in enumerate(load.arrivals.due_s(draw)):
            if due > for_s or number == most:
                return
            request, intended = load.requests(words), began + due
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))
            group.create_task(_one(client, request, load.tenant, intended, samples))


async def _user(
    load: Load, client: Client, draw: random.Random, until: float, most: int | None, samples: list[Sample]
) -> None:
    number = 0
    while time.perf_counter() < until and number != most:
        number += 1
        await _one(client, load.requests(draw), load.tenant, time.perf_counter(), samples)


async def _one(client: Client, request: Request, tenant: str, intended: float, samples: list[Sample]) -> None:
    sample = Sample(tenant, intended)
    samples.append(sample)
    await client.send(request, sample)
