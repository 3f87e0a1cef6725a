"""Both stores, with a clock that only a test moves, and a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from serve.limitstore.base import LimitStore
from serve.limitstore.memory import MemoryLimitStore
from tests.support.limit_stores import Clock, redis_store
from tests.support.servers import Redis, redis


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Redis]:
    with redis() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[LimitStore]:
    made: LimitStore
    if request.param == "memory":
        made = MemoryLimitStore(hold_s=60, kept_s=60, clock_us=clock)
    else:
        made = redis_store(request.getfixturevalue("redis_server").url, clock)
    yield made
    await made.close()
