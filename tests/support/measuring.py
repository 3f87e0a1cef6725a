"""Short runs of the measuring client against a server with known times."""

from __future__ import annotations

import random
from collections.abc import Callable

from serve.bench.arrivals import Arrivals
from serve.bench.client import Request
from serve.bench.load import Load, Ran, run
from tests.support.known_server import KnownServer

TOKENS = 20


def new_prompt(draw: random.Random) -> Request:
    ids = [draw.randrange(20, 500) for _ in range(40)]
    return Request("/v1/completions", {"model": "tiny", "prompt": ids, "max_tokens": TOKENS})


def same_prompt(_: random.Random) -> Request:
    return new_prompt(random.Random(0))


async def measured(
    server: KnownServer,
    arrivals: Arrivals,
    most: int,
    requests: Callable[[random.Random], Request] = new_prompt,
    seed: int = 0,
) -> Ran:
    return await run(server.address, [Load("t", arrivals, requests, server.key)], 60, seed, most)
