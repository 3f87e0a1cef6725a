"""ASGI middleware around every route: the request's id, HEAD, and what is answered when something breaks."""

from __future__ import annotations

import re
import secrets

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import InternalError

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")


class RequestIds:
    """Takes the client's X-Request-Id if it is printable and short, else makes one; echoes it.

    Without `echo` the proxy in front of us echoes it, as Ray Serve's plain proxy does.
    """

    def __init__(self, app: ASGIApp, echo: bool) -> None:
        self._app, self._echo = app, echo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        request_id = given if _REQUEST_ID.match(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message["headers"] if k.lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            await send(message)

        await self._app(scope, receive, sending if self._echo else send)


class Failures:
    """Answers a 500 in OpenAI's shape, and lets the exception go on to the server, which logs it.

    Starlette answers such errors outside of all middleware, where no other header (CORS, the request's id) is added.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if not begun:
                error = InternalError("something went wrong in the server")
                await JSONResponse(error.body(), error.status)(scope, receive, send)
            raise


class Heads:
    """Answers HEAD wherever GET is answered, as GET would be, without the body (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def sending(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, sending)


def allowed_methods(request: Request) -> list[str]:
    """The methods that some route of this path takes."""
    found = set[str]()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    found = found or {"GET"}  # mounted files
    return sorted(found | {"HEAD"} if "GET" in found else found)
