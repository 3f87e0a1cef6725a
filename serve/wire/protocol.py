"""How bytes become requests: uvicorn's HTTP/1.1 protocol (llhttp), where it would lose a body or break a rule of HTTP.

What it adds: an offer to upgrade is ignored and its body kept (RFC 9110, 7.8), HTTP/1.0 gets no chunks, `100 Continue`
waits for the first who wants the body, what is refused here is refused in OpenAI's shape, and a client that closes
its side before it is answered is told so.
"""

from __future__ import annotations

import json
import secrets
import sys
from types import NoneType
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serve.errors import BadRequest, MethodNotAllowed, ServeError

CONTINUE = "starserve.continue"  # in a scope's extensions: call it before reading a body
METHODS = "GET, HEAD, POST, OPTIONS"


class HttpProtocol(HttpToolsProtocol):
    """One connection. Serves as `http` of uvicorn's Config; `ws` must be none, since nothing here upgrades."""

    _answering: RequestResponseCycle | None = None  # the last that was begun; others may wait behind it
    _deaf = False  # what comes is not HTTP any more, and what came before is still being answered

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            while data and not self._deaf:
                data = self._parsed(data)
        except httptools.HttpParserError:
            self._refuse_next(BadRequest("this is not a valid HTTP request"))

    def _parsed(self, data: bytes) -> bytes:
        """Feed the parser; what is left is to be fed next.

        llhttp takes whatever follows a head with an offer for another protocol's, and drops it. So such a head is
        read a second time, without the offer, and only then is its request begun.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self.parser.get_method() == b"CONNECT":
                error = MethodNotAllowed("this server is no proxy")
                error.headers = {"Allow": METHODS}
                self._refuse_next(error)
                return b""
            head = self._head_without_offer()
            # A new one, since after `Connection: close` the old one takes nothing any more.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            return head + data[offer.args[0] :]
        return b""

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.parser.should_upgrade():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if cycle.scope["http_version"] == "1.0":
            cycle.waiting_for_100_continue = False
            app = _unchunked(cycle, app)
        elif cycle.waiting_for_100_continue:
            app = _continued_when_asked(cycle, app)
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def eof_received(self) -> None:
        """Tell a client that closed its side before it was answered. That may be a client that has left.

        TCP does not tell the two apart before something is written, and an engine must not work for who has left.
        """
        if self._answering is not None and not self._answering.response_started:
            self._refuse(BadRequest("the connection was closed from your side before the answer came; keep it open"))

    def _refuse_next(self, error: ServeError) -> None:
        """Refuse what was read last. A whole request before it is answered first, and then the connection ends."""
        before = self._answering
        if before is None or before.response_complete or before.more_body:
            self._refuse(error)
        else:
            self._deaf, before.keep_alive = True, False

    def _refuse(self, error: ServeError) -> None:
        """Answer here and now, and close. Where an answer has begun, nothing may be written into its middle."""
        now = self._answering
        in_answer = now is not None and now.response_started and not now.response_complete
        if not in_answer and not self.transport.is_closing():
            body = json.dumps(error.body()).encode()
            headers = {
                **error.headers,
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "X-Request-Id": f"req-{secrets.token_hex(12)}",
                "Connection": "close",
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(STATUS_LINE[error.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()


class Continue:
    """Says `100 Continue` when it is called.

    Ray Serve asks for the body the moment a request has come, only to hear when its client leaves, so asking cannot
    be what says it. A scope that leaves this process (Ray's own proxy pickles it) cannot take this callable
    along, so then the interim answer is sent at once.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle, self.said = cycle, False

    def __call__(self) -> None:
        if not (self.said or self._cycle.response_started or self._cycle.transport.is_closing()):
            self._cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.said = True

    def __reduce__(self) -> tuple[type[Any], tuple[()]]:
        self()
        return NoneType, ()


def _continued_when_asked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    cycle.waiting_for_100_continue = False
    go_on = Continue(cycle)

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"] = {**scope.get("extensions", {}), CONTINUE: go_on}

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start" and not go_on.said:
                cycle.keep_alive = False  # whether the body will still come is the client's secret
            await send(message)

        await app(scope, receive, sending)

    return asked


def _unchunked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """HTTP/1.0 knows no chunks: an answer of unknown length ends with its connection."""
    unknown = False

    async def old(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            nonlocal unknown
            if message["type"] == "http.response.start":
                unknown = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if unknown:
                    cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
            elif unknown and not message.get("more_body", False):
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, sending)

    return old
