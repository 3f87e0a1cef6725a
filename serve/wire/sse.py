"""How an answer leaves: server-sent events, and the unary answer of a client that may leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.errors import InternalError, ServeError
from serve.wire.openai import Json, Reply
from serve.words import Event

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """A StreamingResponse that closes its generator in its own task, whatever ends it.

    Starlette leaves that to the garbage collector; then the engine would go on working for a client that left.
    """

    def __init__(self, body: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        quiet = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(body, media_type="text/event-stream", headers={**quiet, **headers})
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._body):
            await super().__call__(scope, receive, send)


async def stream(reply: Reply, head: Event, rest: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Bytes of a stream whose first event is already here. An error is told in band, and then no [DONE]."""
    async with aclosing(rest):
        try:
            if opening := reply.first():
                yield data(opening)
            event = head
            yield data(reply.chunk(event))
            async for event in rest:
                yield data(reply.chunk(event))
            if event.usage and (closing := reply.last(event.usage)):
                yield data(closing)
            yield DONE
        except ServeError as e:
            yield data(e.body())
        except Exception:
            yield data(InternalError("something went wrong in the server; the answer is not complete").body())


def data(body: Json) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """Await `work`, or cancel it when the client leaves (then None: nobody reads the answer).

    The body has been read before, so the next message of the connection can only be its end.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
