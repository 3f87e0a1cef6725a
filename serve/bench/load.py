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
    after_s: float = 0.0  # how much later than the others it begins


@dataclass(frozen=True, slots=True)
class Ran:
    """All requests of a run that were due, and what the client itself took. Times are `time.perf_counter`'s."""

    samples: Sequence[Sample]
    began_s: float
    wall_s: float  # from the first due time to the last answer
    client_cpu_s: float
    client_wait_s: float = 0.0  # ready to run, but the machine ran something else


async def run(
    address: str,
    loads: Sequence[Load],
    for_s: float,
    seed: int,
    most: int | None = None,
    cut: bool = False,
    leader: str | None = None,
) -> Ran:
    """Send for `for_s` seconds (or `most` requests of each tenant or user), then wait for the answers.

    `cut`: what is unanswered after `for_s` seconds is cut off. `leader`: `most` is for this tenant alone, and as soon
    as it has all its answers, what the others still wait for is cut off.
    """
    samples, cpu, waited = list[Sample](), time.process_time(), waited_s()
    async with AsyncExitStack() as stack:
        stack.enter_context(first_in_line())
        clients = [await stack.enter_async_context(Client(load.address or address, load.key)) for load in loads]
        began = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(for_s if cut else None), asyncio.TaskGroup() as group:
                sending = list[tuple[str, asyncio.Task[None]]]()
                for load, client in zip(loads, clients, strict=True):
                    ends = most if leader in (None, load.tenant) else None
                    draw, begins = random.Random(f"{seed}/{load.tenant}"), began + load.after_s
                    if isinstance(load.arrivals, Closed):
                        users = [_user(load, client, draw, begins, for_s, ends, samples)
                                 for _ in range(load.arrivals.users)]  # fmt: skip
                    else:
                        users = [_planned(load, client, draw, begins, for_s, ends, samples)]
                    sending += [(load.tenant, group.create_task(user)) for user in users]
                if leader is not None:
                    await asyncio.wait([task for tenant, task in sending if tenant == leader])
                    for _, task in sending:
                        task.cancel()
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
    load: Load, client: Client, draw: random.Random, began: float, for_s: float, most: int | None,
    samples: list[Sample],
) -> None:  # fmt: skip
    assert isinstance(load.arrivals, Closed)
    await asyncio.sleep(max(0.0, began - time.perf_counter()))
    number, pause_s = 0, load.arrivals.pause_s
    while time.perf_counter() < began + for_s and number != most:
        number += 1
        if pause_s:
            await asyncio.sleep(draw.expovariate(1 / pause_s))
        await _one(client, load.requests(draw), load.tenant, time.perf_counter(), samples)


async def _one(client: Client, request: Request, tenant: str, intended: float, samples: list[Sample]) -> None:
    sample = Sample(tenant, intended)
    samples.append(sample)
    await client.send(request, sample)
