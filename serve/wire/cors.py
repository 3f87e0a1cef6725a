"""CORS: which web pages may call this server from a browser: those that `http.cors_origins` names."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from serve.errors import Forbidden

_LIMITS = [f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")]
EXPOSED = ("x-request-id", "retry-after", "x-should-retry", "x-machine-generated", "warning", "allow", *_LIMITS)


class Cors(CORSMiddleware):
    """Starlette's, with its refusals in OpenAI's shape.

    A key travels in a header that the page sets itself, so credentials (cookies) are never allowed. Headers that a
    page wants to send are allowed whatever they are: SDKs send their own. Pages of named origins may reach a server
    on the user's own machine or network; with `*` a browser that asks for that is refused.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "OPTIONS"),
            allow_headers=("*",),
            allow_private_network="*" not in origins,
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        error = Forbidden(f"CORS: not allowed from here: {bytes(answer.body).decode().rpartition('CORS ')[2]}")
        kept = {k: v for k, v in answer.headers.items() if not k.startswith("content-")}
        return JSONResponse(error.body(), error.status, kept)
