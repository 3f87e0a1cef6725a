"""Those who wait behind a handle: refused when nobody is there to answer them, not when the engine is busy."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve import context
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from serve.deploy.handle import Failure, RayEngine
from serve.errors import EngineUnavailable
from serve.words import Job, Sampling, Secret

GONE = DeploymentUnavailableError(DeploymentID(name="engine-tiny", app_name="tested"))
DEAD = Failure.of(EngineUnavailable("the engine of this model has stopped"))
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


class NamingHandle:
    """Notes under which request's id Serve would send each call: it takes it from the context."""

    def __init__(self) -> None:
        self.sent, self.asked_all = list[tuple[str, str]](), asyncio.Event()

    def options(self, **_: Any) -> NamingHandle:
        return self

    def __getattr__(self, method: str) -> Any:
        return _Sender(self, method)

    def broadcast(self, method: str, *_: Any) -> Any:
        self.note(f"all:{method}")
        self.asked_all.set()
        return _Answers(method)

    def note(self, method: str) -> None:
        self.sent.append((method, context._get_serve_request_context()._internal_request_id))


class _Sender:
    def __init__(self, handle: NamingHandle, method: str) -> None:
        self._handle, self._method = handle, method

    def remote(self, *_: Any) -> Any:
        self._handle.note(self._method)
        return _NeverAnswered() if self._method == "generate" else Silent()


class _NeverAnswered:
    def __aiter__(self) -> _NeverAnswered:
        return self

    async def __anext__(self) -> Any:
        await asyncio.Event().wait()

    def cancel(self) -> None: ...


class _Answers:
    def __init__(self, method: str) -> None:
        self._method = method

    async def results_async(self, **_: Any) -> list[Any]:
        return [None if self._method == "check" else {}]


async def test_jobs_alone_are_sent_under_the_id_of_their_request() -> None:
    """Serve tells by it that a call has ended: under a job's id a question would end the job."""
    given: Any = NamingHandle()
    token = context._serve_request_context.set(context._RequestContext(_internal_request_id="of the request"))
    asked = RayEngine(given, patience_s=0.02, silence_s=0.2)
    job = Job("job", (1,), Sampling(max_tokens=1), Secret("salt"))
    answer = asyncio.ensure_future(anext(asked.generate(job)))
    await given.asked_all.wait()  # it has waited for a while, and asks whether the engine lives
    await asked.counted(["job"])
    await asked.forget(["job"])
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    context._serve_request_context.reset(token)
    of_the_request = [method for method, request_id in given.sent if request_id]
    assert of_the_request == ["generate"]
    assert {method for method, _ in given.sent} == {"generate", "check", "all:check", "all:counted", "all:forget"}
