"""The end of a router that is stopped: nothing new is let in, what runs may end, and then it is ended with a word.

The token path pays for it with one assignment before and one after each event is written.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any

from serve.errors import Stopped, Stopping

LAST_WORDS_S = 2.0  # for the ends of answers that were cut to reach their clients
_REFUSED = "the server is being stopped; try again soon"
_CUT = "the server was stopped while it answered; the answer is not complete"


class Draining:
    """Of one router: which answers run, and how far its end has come."""

    def __init__(self) -> None:
        self.stopping = self.is_over = False
        self._running = set[Answering]()
        self._requests, self._quiet = 0, asyncio.Event()
        self._quiet.set()

    def check(self) -> None:
        """Raises Stopping when nothing new is let in."""
        if self.stopping:
            raise Stopping(_REFUSED)

    def answering(self) -> Answering:
        """Around the life of one answer."""
        return Answering(self, self._running)

    async def drain(self, within_s: float) -> int:
        """Let what runs end within so many seconds, then end it. Returns how many answers were cut."""
        self.stopping = True
        await self._all_ended(within_s)
        self.is_over, cut = True, list(self._running)
        for answering in cut:
            answering.cut()
        await self._all_ended(LAST_WORDS_S)
        return len(cut)

    async def _all_ended(self, within_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), within_s)

    def counting(self, app: Any) -> Any:
        """The ASGI app, each of its requests counted until its last byte was sent."""

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)  # type: ignore[no-any-return]
            self._requests += 1
            self._quiet.clear()
            try:
                await app(scope, receive, send)
            finally:
                self._requests -= 1
                if not self._requests:
                    self._quiet.set()

        return counted


class Answering:
    """One answer. While it waits for its engine it may be cut; while its client is written to it is only told.

    Cutting cancels the task that waits, as `asyncio.timeout` does, and turns that into an error for the client. A task
    that is cancelled for another reason, such as a client that left, stays cancelled.
    """

    __slots__ = ("_begun", "_cancelled", "_draining", "_others", "_running", "_waiting")

    def __init__(self, draining: Draining, running: set[Answering]) -> None:
        self._draining, self._running = draining, running
        self._waiting: asyncio.Task[Any] | None = None
        self._cancelled: asyncio.Task[Any] | None = None
        self._others, self._begun = 0, False

    def waits(self) -> None:
        """The task that calls this waits for the engine from here on. It need not be the one that did before."""
        if self._draining.is_over:
            raise self._end()
        self._waiting = asyncio.current_task()

    def writes(self) -> None:
        """The client gets an event now."""
        self._waiting, self._begun = None, True

    def cut(self) -> None:
        if self._waiting is not None and self._cancelled is None:
            self._cancelled, self._others = self._waiting, self._waiting.cancelling()
            self._cancelled.cancel()

    async def __aenter__(self) -> Answering:
        self.waits()
        self._running.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.discard(self)
        alone = self._cancelled is not None and self._cancelled.uncancel() <= self._others
        if alone and isinstance(error, asyncio.CancelledError):
            raise self._end() from None

    def _end(self) -> Stopping | Stopped:
        """What waited for its turn was only not let in."""
        return Stopped(_CUT) if self._begun else Stopping(_REFUSED)
