"""HTTP as bytes: a server of our protocol on a port of loopback, and clients that send exactly what they are told."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from queue import Queue
from threading import Thread
from typing import Any, NamedTuple

import uvicorn

from serve.wire.protocol import HttpProtocol


class Reply(NamedTuple):
    """What came back until the server closed, its interim answers apart."""

    interim: list[int]
    status: int
    headers: dict[str, str]
    body: bytes

    def error(self) -> dict[str, Any]:
        """The error, which has OpenAI's shape and an id to ask about."""
        assert self.headers["content-type"] == "application/json", (self.headers, self.body)
        assert self.headers["x-request-id"]
        body = json.loads(self.body)
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return dict(body["error"])


def asked_at_once(app: Any) -> Any:
    """As Ray Serve wraps an app: the body is asked for at once, so as to hear when its client leaves."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        messages = asyncio.Queue[Any]()

        async def fetch() -> None:
            while True:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    return

        fetching = asyncio.create_task(fetch())
        await asyncio.sleep(0)
        try:
            await app(scope, messages.get, send)
        finally:
            fetching.cancel()

    return wrapped


@asynccontextmanager
async def serving(app: Any, **config: Any) -> AsyncIterator[int]:
    """`app` on a port of loopback, as a router replica serves it."""
    how: dict[str, Any] = {"http": HttpProtocol, "ws": "none", "log_level": "critical", "lifespan": "off", **config}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(asked_at_once(app), **how))
        task = asyncio.create_task(server.serve([listener]))
        while not server.started:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


def checked(app: Any) -> Any:
    """As a replica of Ray Serve, which answers HAProxy's health checks itself."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/-/healthz":
            return await app(scope, receive, send)  # type: ignore[no-any-return]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    return wrapped


@contextmanager
def serving_beside(app: Any) -> Iterator[int]:
    """The same in a thread of its own, for tests that share one."""
    ready, stop = Queue[tuple[int, asyncio.AbstractEventLoop]](), asyncio.Event()

    async def serve() -> None:
        async with serving(app) as port:
            ready.put((port, asyncio.get_running_loop()))
            await stop.wait()

    thread = Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    port, loop = ready.get(timeout=10)
    yield port
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


async def exchange(
    port: int,
    *pieces: bytes,
    shut: bool = False,
    within_s: float = 10,
    pause_s: float = 0.01,
    host: str = "127.0.0.1",
) -> Reply:
    """Send the pieces one after the other, close our side if `shut`, and read until the server closes."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if piece is not pieces[-1]:
                await asyncio.sleep(pause_s)
        if shut:
            writer.write_eof()
        told = await asyncio.wait_for(reader.read(), within_s)
    finally:
        writer.close()
    return reply_of(told)


async def first_answer(port: int, sent: bytes) -> Reply:
    """One answer of known length, of a connection that stays open as the client leaves it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    async with asyncio.timeout(10):
        told = head = await reader.readuntil(b"\r\n\r\n")
        while head.split(b" ")[1].startswith(b"1"):
            head = await reader.readuntil(b"\r\n\r\n")
            told += head
        told += await reader.readexactly(int(reply_of(head).headers["content-length"]))
    writer.close()
    return reply_of(told)


def reply_of(told: bytes) -> Reply:
    interim = list[int]()
    while True:
        head, _, told = told.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1]) if " " in first else 0
        if not 100 <= status < 200:
            break
        interim.append(status)
    pairs = (line.partition(":") for line in lines)
    return Reply(interim, status, {name.lower(): value.strip() for name, _, value in pairs}, told)


def request(
    target: str, headers: Sequence[tuple[str, str]] = (), body: Any = None, method: str = "POST", version: str = "1.1"
) -> bytes:
    """A request that asks for the connection's end. `body`: bytes, or what is to be JSON."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.lower() for name, _ in headers}
    lines = [f"{method} {target} HTTP/{version}", "Host: test", *(f"{name}: {value}" for name, value in headers)]
    if "connection" not in named:
        lines.append("Connection: close")
    if body is not None and not named & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content
