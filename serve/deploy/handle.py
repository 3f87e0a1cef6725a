"""The engine's one verb over a Ray Serve handle. The transport hides here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import replace
from typing import Any, NamedTuple

from ray.serve.handle import DeploymentHandle

from serve import errors
from serve.errors import EngineLost, EngineUnavailable, ServeError
from serve.words import Counted, Event, Job

BROADCAST_S = 5.0
PATIENCE_S = 2.0  # how long the first event may take before we ask whether the engine lives
SILENCE_S = 20.0  # how long a replica may be too busy to say so
_UNAVAILABLE = "the engine of this model is not running; it restarts by itself, try again soon"


class Failure(NamedTuple):
    """An error as it crosses a process: the class by name, its fields, never a traceback."""

    kind: str
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, error: ServeError) -> Failure:
        return cls(type(error).__name__, error.told())

    def error(self) -> ServeError:
        return errors.again(self.kind, self.fields)


class GivenBack(NamedTuple):
    """`engines.moving.Moved` as it crosses a process."""

    waited_s: float
    toward: str | None


class RayEngine:
    """Engine over a handle. Each job keeps its own handle stream, so that Serve's counts and cancellation hold.

    Jobs alone are sent in their HTTP request's name. What else is asked has a name of its own: a question that ends
    under a job's id would count as that job's end.
    """

    def __init__(
        self, handle: DeploymentHandle[Any], patience_s: float = PATIENCE_S, silence_s: float = SILENCE_S
    ) -> None:
        self._patience_s, self._silence_s = patience_s, silence_s
        self._handle = handle
        self._streams: Any = handle.options(stream=True)
        self._asking: asyncio.Future[None] | None = None  # whether the engine lives: what those who wait asked last
        self._asked_s = 0.0
        self._silent_since_s: float | None = None

    async def check(self) -> None:
        if not await self._says_that_it_lives():
            raise EngineUnavailable(_UNAVAILABLE)

    async def _says_that_it_lives(self) -> bool:
        """False: it is silent. EngineUnavailable: it says that it does not, or is dead."""
        try:
            failure: Failure | None = await asyncio.wait_for(
                _apart(lambda: self._handle.check.remote()), self._patience_s
            )
        except TimeoutError:
            return False
        except Exception:
            raise EngineUnavailable(_UNAVAILABLE) from None
        if failure is not None:
            raise failure.error()
        return True

    async def counted(self, job_ids: Sequence[str]) -> dict[str, Counted]:
        """What all replicas of this model know of these jobs."""
        found = dict[str, Counted]()
        for told in await self._of_every_replica("counted", list(job_ids)):
            found |= told
        return found

    async def forget(self, job_ids: Sequence[str]) -> None:
        await self._of_every_replica("forget", list(job_ids))

    async def _of_every_replica(self, method: str, job_ids: list[str]) -> list[Any]:
        try:
            return list(
                await _apart(lambda: self._handle.broadcast(method, job_ids).results_async(timeout_s=BROADCAST_S))
            )
        except Exception:
            raise EngineUnavailable(_UNAVAILABLE) from None

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        while True:
            stream: Any = self._streams.generate.remote(job)
            started = False
            try:
                first = await self._first(stream)
                if isinstance(first, GivenBack):
                    job = replace(job, waited_s=first.waited_s, toward=first.toward)
                    continue
                item: Event | Failure = first
                while True:
                    if isinstance(item, Failure):
                        raise item.error()
                    started = True
                    yield item
                    item = await anext(stream)
            except StopAsyncIteration:
                return
            except (ServeError, asyncio.CancelledError, GeneratorExit):
                raise
            except Exception:
                if started:
                    raise EngineLost("the engine stopped while it answered") from None
                raise EngineUnavailable(_UNAVAILABLE) from None
            finally:
                stream.cancel()

    async def _first(self, stream: Any) -> Event | Failure | GivenBack:
        """Wait for the first event as long as the engine lives: a long prompt or a queue is no failure.

        Without this, a call while no replica runs would wait until one is back.
        """
        waiting = asyncio.ensure_future(anext(stream))
        try:
            while True:
                done, _ = await asyncio.wait({waiting}, timeout=self._patience_s)
                if done:
                    first: Event | Failure | GivenBack = waiting.result()
                    return first
                await self._lives()
        finally:
            waiting.cancel()

    async def _lives(self) -> None:
        """Asked once for all who wait: there may be thousands in line."""
        now_s = time.monotonic()
        if self._asking is None or (self._asking.done() and now_s - self._asked_s > self._patience_s / 2):
            self._asked_s, self._asking = now_s, asyncio.ensure_future(self._is_there())
            self._asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())  # somebody saw it
        await asyncio.shield(self._asking)

    async def _is_there(self) -> None:
        """EngineUnavailable where no replica lives.

        One that is busy may be silent for a while, and one of several may have died: of those who wait nobody should
        be refused for that.
        """
        with suppress(EngineUnavailable):
            if await self._says_that_it_lives():
                self._silent_since_s = None
                return
        answers = list[Any]()
        try:
            answers = await _apart(
                lambda: self._handle.broadcast("check").results_async(
                    timeout_s=self._patience_s, return_exceptions=True
                )
            )
        except TimeoutError as e:
            answers = [e]
        except Exception:
            answers = []  # there is none
        now_s = time.monotonic()
        silent = None not in answers and any(isinstance(answer, TimeoutError) for answer in answers)
        self._silent_since_s = (self._silent_since_s or now_s) if silent else None
        if None in answers or (self._silent_since_s and now_s - self._silent_since_s <= self._silence_s):
            return
        raise EngineUnavailable(_UNAVAILABLE)


async def _apart(call: Callable[[], Any]) -> Any:
    """What a call to Serve comes to that belongs to no request: Serve takes a request's id from the context."""

    async def called() -> Any:
        return await call()

    return await asyncio.get_running_loop().create_task(called(), context=Context())
