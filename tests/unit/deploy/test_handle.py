"""Those who wait behind a handle: refused when nobody is there to answer them, not when the engine is busy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve.deploy.handle import Failure, RayEngine
from serve.errors import EngineUnavailable

GONE = DeploymentUnavailableError(DeploymentID(name="engine-tiny", app_name="tested"))
DEAD = Failure("EngineUnavailable", "the engine of this model has stopped", None)
ENDED = ActorDiedError()


class Silent:
    """What Serve gives for a call that nobody answers."""

    def __await__(self) -> Any:
        return asyncio.Event().wait().__await__()


class Handle:
    """As much of Serve's as is asked whether an engine lives. `check` and `everybody`: what the calls come to."""

    def __init__(self, check: Any = None, everybody: Any = None) -> None:
        self.says, self.everybody, self.asked = check, everybody, 0

    def options(self, **_: Any) -> Handle:
        return self

    @property
    def check(self) -> Handle:
        return self

    def remote(self) -> Any:
        self.asked += 1
        return Silent() if self.says == "silent" else _answer(self.says)

    def broadcast(self, _: str) -> Handle:
        return self

    async def results_async(self, timeout_s: float, return_exceptions: bool) -> list[Any]:
        """Of each replica its answer, or what went wrong."""
        assert return_exceptions
        if self.everybody == "silent":
            raise TimeoutError
        if isinstance(self.everybody, DeploymentUnavailableError):
            raise self.everybody
        return self.everybody if isinstance(self.everybody, list) else [self.everybody]


async def _answer(says: Any) -> Any:
    if isinstance(says, Exception):
        raise says
    return says


def engine(given: Handle) -> RayEngine:
    anything: Any = given
    return RayEngine(anything, patience_s=0.02, silence_s=0.2)


@pytest.mark.parametrize(
    "given", [Handle(), Handle("silent"), Handle("silent", "silent"), Handle("silent", [TimeoutError(), DEAD])]
)
async def test_whoever_waits_for_an_engine_that_lives_or_is_busy_waits_on(given: Handle) -> None:
    await engine(given)._lives()


@pytest.mark.parametrize(
    "given", [Handle(DEAD, DEAD), Handle(GONE, GONE), Handle("silent", GONE), Handle(ENDED, [ENDED])]
)
async def test_whoever_waits_for_an_engine_that_is_not_there_is_told(given: Handle) -> None:
    with pytest.raises(EngineUnavailable):
        await engine(given)._lives()


@pytest.mark.parametrize("dead", [DEAD, ENDED, "silent"])
async def test_whoever_waits_for_one_of_two_is_not_refused_when_the_other_dies(dead: Any) -> None:
    await engine(Handle(dead, [dead, None]))._lives()


async def test_an_engine_that_is_silent_for_too_long_counts_as_gone_and_one_that_speaks_again_does_not() -> None:
    given = Handle("silent", "silent")
    asked = engine(given)
    await asked._lives()
    await asyncio.sleep(0.15)
    given.says = None
    await asked._lives()
    given.says = "silent"
    await asyncio.sleep(0.1)
    await asked._lives()

    async def wait_on() -> None:
        while True:
            await asked._lives()
            await asyncio.sleep(0.03)

    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(wait_on(), 5)


async def test_thousands_who_wait_ask_once() -> None:
    given = Handle("silent", "silent")
    asked = engine(given)
    await asyncio.gather(*(asked._lives() for _ in range(1000)))
    assert given.asked == 1
