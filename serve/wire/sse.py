"""How an answer leaves: server-sent events, and the unary answer of a client that may leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from serve.errors import InternalError, ServeError
from serve.wire import large
from serve.wire.openai import Json, Reply
from serve.words import Event

InThread = Callable[[Callable[[Reply, Event], bytes], Reply, Event], Awaitable[bytes]]
DONE = b"data: [DONE]\n\n"
COMMENT = b": waiting\n\n"  # clients skip it; proxies see that the stream lives


class EventStream(StreamingResponse):
    """A stream whose first event may still be on its way. It is never silent long.

    Whatever ends it, the events are closed in its own task. Starlette leaves that to the garbage collector; then the
    engine would go on working for a client that left.
    """

    def __init__(
        self,
        reply: Reply,
        head: asyncio.Task[Event],
        rest: AsyncGenerator[Event, None],
        headers: Mapping[str, str],
        comment_after_s: float,
        in_thread: InThread,
    ) -> None:
        """`in_thread`: runs what takes long."""
        quiet = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._body, self._head, self._rest = _chunks(reply, head, rest, in_thread), head, rest
        super().__init__(self._body, media_type="text/event-stream", headers={**quiet, **headers})
        self._comment_after_s = comment_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        alive = _KeptAlive(send, self._comment_after_s)
        comments = asyncio.create_task(alive.comment())
        try:
            async with aclosing(self._rest):
                try:
                    await super().__call__(scope, receive, alive.send)
                finally:
                    await self._body.aclose()
                    await cancelled(self._head)
        finally:
            await cancelled(comments)


class _KeptAlive:
    """A `send` that notes when it was last used, and comments for when that is long ago. Costs a clock per chunk."""

    def __init__(self, send: Send, after_s: float) -> None:
        self._send, self._after_s, self._open = send, after_s, False
        self._sent_at = self._now()

    async def send(self, message: Message) -> None:
        self._sent_at = self._now()
        # Closed before the last message: nothing may follow it.
        self._open = message["type"] == "http.response.start" or message.get("more_body", False)
        await self._send(message)

    async def comment(self) -> None:
        while True:
            silent_s = self._now() - self._sent_at
            if silent_s < self._after_s:
                await asyncio.sleep(self._after_s - silent_s)
            else:
                self._sent_at = self._now()
                if self._open:
                    await self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _chunks(
    reply: Reply, head: asyncio.Task[Event], rest: AsyncGenerator[Event, None], in_thread: InThread
) -> AsyncGenerator[bytes, None]:
    """An error is told in band, and then no [DONE] follows."""
    try:
        event = await head
        for opening in reply.first():
            yield data(opening)
        yield await in_thread(large.chunk, reply, event) if large.is_large(event) else data(reply.chunk(event))
        async for event in rest:
            yield await in_thread(large.chunk, reply, event) if large.is_large(event) else data(reply.chunk(event))
        if event.usage and (closing := reply.last(event.usage)):
            yield data(closing)
        yield DONE
    except ServeError as e:
        yield data(e.body())
    except Exception:
        yield data(InternalError("something went wrong in the server; the answer is not complete").body())


def data(body: Json) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def left_before(request: Request, work: asyncio.Task[Any], patience_s: float | None = None) -> bool:
    """Wait for `work`, at most `patience_s`. True: the client has left, the work is cancelled, nobody reads it.

    The body has been read before, so the next message of the connection can only be its end.
    """
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, leaving}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
    except BaseException:
        await cancelled(work)
        raise
    finally:
        left = leaving.done() and not work.done()
        await cancelled(leaving)
    if left:
        await cancelled(work)
    return left


async def cancelled(work: asyncio.Future[Any]) -> None:
    """Cancel, and wait until it has cleaned up."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
