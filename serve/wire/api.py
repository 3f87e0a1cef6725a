"""The public routes. Everything under /v1 needs a key; identity comes from the key alone."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from serve.errors import (
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    InternalError,
    MethodNotAllowed,
    NotFound,
    ServeError,
    UnknownModel,
)
from serve.request import Corridor, collect
from serve.settings import Caps
from serve.tenants import Tenants
from serve.wire.bodies import BODIES, parse
from serve.wire.openai import Reply, model_card
from serve.wire.sse import EventStream, stream, unless_gone
from serve.words import Event, Form, Tenant

HEALTH_TIMEOUT_S = 2.0
PATHS: dict[Form, str] = {
    "instruct": "/v1/instruct", "completion": "/v1/completions", "chat": "/v1/chat/completions",
}  # fmt: skip
_PREFIX: dict[Form, str] = {"instruct": "instruct", "completion": "cmpl", "chat": "chatcmpl"}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")


class Api:
    """Routes over one corridor."""

    def __init__(self, corridor: Corridor, tenants: Tenants, caps: Caps) -> None:
        self._corridor, self._tenants, self._caps = corridor, tenants, caps
        self._created = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter()
        for form, path in PATHS.items():
            router.add_api_route(path, self._generation(form), methods=["POST"], name=form, openapi_extra=_schema(form),
                                 summary=BODIES[form].__doc__ or f"OpenAI's {form} form.")  # fmt: skip
        router.add_api_route("/v1/models", self.models, methods=["GET"], response_model=None)
        router.add_api_route("/v1/models/{model_id:path}", self.model, methods=["GET"], response_model=None)
        router.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        router.add_api_route("/health/live", self.live, methods=["GET"], response_model=None)
        for path in ("/health", "/health/live"):  # probes send HEAD; the schema need not list it twice
            call = self.health if path == "/health" else self.live
            router.add_api_route(path, call, methods=["HEAD"], response_model=None, include_in_schema=False)
        return router

    def _generation(self, form: Form) -> Any:
        async def generate(request: Request) -> Response:
            tenant = self.tenant(request)
            ask = parse(form, await _body(request, self._caps), self._caps)
            request_id: str = request.state.request_id
            reply = Reply(ask, f"{_PREFIX[form]}-{secrets.token_hex(12)}")
            events = self._corridor.answer(ask, tenant, request_id)
            if not ask.stream:
                event = await unless_gone(request, collect(events))
                return Response(status_code=499) if event is None else JSONResponse(reply.whole(event))
            # The first event is awaited before the headers go, so that a refusal is still a status code.
            head = await unless_gone(request, _first(events))
            if head is None:
                return Response(status_code=499)
            return EventStream(stream(reply, head, events), {"X-Request-Id": request_id})

        return generate

    def tenant(self, request: Request) -> Tenant:
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            raise BadRequest("send one Authorization header, not several")
        return self._tenants.identify(given[0] if given else None)

    async def models(self, request: Request) -> JSONResponse:
        """The models of this server."""
        self.tenant(request)
        cards = [model_card(s.model, self._created) for s in self._corridor.served.values()]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request, model_id: str) -> JSONResponse:
        """One model: context length and templates."""
        self.tenant(request)
        served = self._corridor.served.get(model_id)
        if served is None:
            raise UnknownModel("this server has no such model; GET /v1/models lists what it has", "model")
        return JSONResponse(model_card(served.model, self._created))

    async def health(self) -> JSONResponse:
        """200 when a request sent now would be answered, for every model."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await asyncio.gather(*(s.engine.check() for s in self._corridor.served.values()))
        except (ServeError, TimeoutError):
            return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    async def live(self) -> JSONResponse:
        """200 as long as the router runs."""
        return JSONResponse({"status": "ok"})


def install_errors(app: FastAPI) -> None:
    """Every answer carries X-Request-Id; every error has OpenAI's shape."""

    async def serve_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServeError)
        retry = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
        return JSONResponse(error.body(), error.status, retry)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            return await serve_error(request, MethodNotAllowed("this route does not take this method"))
        return await serve_error(request, NotFound("there is no such route; /docs lists them"))

    async def any_error(request: Request, error: Exception) -> Response:
        return await serve_error(request, InternalError("something went wrong in the server"))

    app.add_exception_handler(ServeError, serve_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, any_error)


class RequestIds:
    """ASGI middleware: takes the client's X-Request-Id if it is printable and short, else makes one; echoes it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)  # type: ignore[no-any-return]
        given = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"x-request-id"), "")
        request_id = given if _REQUEST_ID.match(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message["headers"] if k.lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
            await send(message)

        await self._app(scope, receive, sending)


async def _first(events: AsyncGenerator[Event, None]) -> Event:
    try:
        return await anext(events)
    except BaseException:
        await events.aclose()
        raise


async def _body(request: Request, caps: Caps) -> bytes:
    """Read the body; one that is too large is refused before it is held, one that trickles in after a while."""
    refusal = BodyTooLarge(f"the body is larger than {caps.body_bytes} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > caps.body_bytes:
        raise refusal
    body = bytearray()
    try:
        async with asyncio.timeout(caps.body_timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > caps.body_bytes:
                    raise refusal
    except TimeoutError:
        raise BodyTooSlow(f"the body did not come within {caps.body_timeout_s:g} s") from None
    return bytes(body)


def _schema(form: Form) -> dict[str, Any]:
    schema = BODIES[form].model_json_schema(ref_template="#/components/schemas/{model}")
    defined = schema.pop("$defs", {})
    inline = _inlined(schema, defined)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inline}}},
            "security": [{"key": []}]}  # fmt: skip


def _inlined(node: Any, defined: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(defined[node["$ref"].rsplit("/", 1)[1]], defined)
        return {k: _inlined(v, defined) for k, v in node.items()}
    return [_inlined(v, defined) for v in node] if isinstance(node, list) else node
