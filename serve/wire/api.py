"""The public routes. Everything under /v1 needs a key; identity comes from the key alone."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve.answers import collect
from serve.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    ServeError,
)
from serve.record import Record
from serve.request import Corridor
from serve.rights import check_scope, may_use
from serve.settings import Settings
from serve.tenants.directory import Tenants
from serve.threads import Threads
from serve.wire import large
from serve.wire.bodies import BODIES
from serve.wire.body import read_body
from serve.wire.docs import described
from serve.wire.middleware import Failures, Heads, allowed_methods
from serve.wire.openai import Reply, model_card
from serve.wire.parse import parse
from serve.wire.sse import EventStream, left_before
from serve.wire.usage import UsageOf, once, report_threads, usage_page
from serve.words import Ask, Event, Form, Tenant

HEALTH_TIMEOUT_S = 2.0
_SMALL_BODY = 4096  # bytes
_MACHINE_GENERATED = {"X-Machine-Generated": "true"}  # some models' licences ask that this be made clear
_TOOLS_IGNORED = {"Warning": '299 starserve "tools were accepted and are never called"'}
PATHS: dict[Form, str] = {
    "instruct": "/v1/instruct", "completion": "/v1/completions", "chat": "/v1/chat/completions",
    "fim": "/v1/fim/completions",
}  # fmt: skip
_PREFIX: dict[Form, str] = {"instruct": "instruct", "completion": "cmpl", "chat": "chatcmpl", "fim": "fim"}


class Api:
    """Routes over one corridor."""

    def __init__(
        self,
        corridor: Corridor,
        tenants: Tenants,
        pool: Threads,
        settings: Settings,
        usage_of: UsageOf | None = None,
    ) -> None:
        self._corridor, self._tenants, self._pool = corridor, tenants, pool
        self._usage_of, self._currency, self._reports = usage_of, settings.currency, report_threads()
        self._caps, self._comment_after_s = settings.caps, settings.http.comment_after_s
        self._created = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter()
        for form, path in PATHS.items():
            call, summary = self._generation(form), BODIES[form].__doc__
            router.add_api_route(
                path, call, methods=["POST"], name=form, summary=summary, openapi_extra=described(form)
            )
        engines = "/v1/engines/{model_id:path}/completions"  # OpenAI's older address; Copilot's override sends there
        router.add_api_route(engines, self._generation("completion"), methods=["POST"], include_in_schema=False)
        router.add_api_route("/v1/models", self.models, methods=["GET"], response_model=None)
        router.add_api_route("/v1/models/{model_id:path}", self.model, methods=["GET"], response_model=None)
        router.add_api_route("/v1/usage", self.usage, methods=["GET"], response_model=None)
        router.add_api_route("/health", self.health, methods=["GET"], response_model=None)
        router.add_api_route("/health/live", self.live, methods=["GET"], response_model=None)
        return router

    def _generation(self, form: Form) -> Any:
        async def generate(request: Request) -> Response:
            record = Record(f"{_PREFIX[form]}-{secrets.token_hex(12)}", form, request.state.request_id)
            tenant, body, refused = None, b"", self._corridor.accounts.refused
            try:
                tenant = self.tenant(request)
                record.tenant_id, record.key_id = tenant.tenant_id, tenant.key_id
                record.organisation_id = tenant.organisation_id
                check_scope(tenant, "generate")
                refused.check(tenant)  # a flood of refusals should cost little
                body = await self._body(request, tenant)
                ask = await self._ask(form, body, request.path_params.get("model_id"), tenant)
                served = self._corridor.find(ask.model, tenant)
            except ServeError as e:
                if tenant is not None:
                    refused.note_body(tenant, e, len(body))
                self._corridor.refuse(record, e)
                raise
            except ClientDisconnect:  # in the middle of its body
                self._corridor.left(record)
                return Response(status_code=499)
            reply = Reply(ask, record.request_id, served.vocabulary.spell)
            traceparent = request.headers.get("traceparent")
            headers = {**_MACHINE_GENERATED, **(_TOOLS_IGNORED if ask.tools_ignored else {})}
            events = self._corridor.answer(ask, tenant, record, traceparent, headers)
            if not ask.stream:
                whole = asyncio.create_task(collect(events))
                if await left_before(request, whole):
                    return Response(status_code=499)
                return await self._unary(reply, whole.result(), tenant, headers)
            # The first event is awaited before the headers go, so that a refusal is still a status code; but not
            # for so long that somebody on the way gives the silent connection up.
            head = asyncio.create_task(_first(events))
            if await left_before(request, head, self._comment_after_s):
                return Response(status_code=499)
            if head.done():
                head.result()
            in_thread = partial(self._pool.run, tenant.tenant_id)
            return EventStream(reply, head, events, headers, self._comment_after_s, in_thread)

        return generate

    async def _unary(
        self, reply: Reply, events: Sequence[Event], tenant: Tenant, headers: Mapping[str, str]
    ) -> Response:
        if not any(map(large.is_large, events)):
            return JSONResponse(reply.whole(events), 200, headers)
        body = await self._pool.run(tenant.tenant_id, large.whole, reply, events)
        return Response(body, 200, headers, "application/json")

    async def _body(self, request: Request, tenant: Tenant) -> bytes:
        run = partial(self._pool.run, tenant.tenant_id)
        return await read_body(request, self._caps.body_bytes, self._caps.body_timeout_s, run)

    async def _ask(self, form: Form, body: bytes, model: str | None, tenant: Tenant) -> Ask:
        # A small body is read within a millisecond, unless it brings a schema, whose name may be written with escapes.
        if len(body) <= _SMALL_BODY and b"response_format" not in body and b"\\u" not in body:
            return parse(form, body, self._caps, model)
        return await self._pool.run(tenant.tenant_id, parse, form, body, self._caps, model)

    def tenant(self, request: Request) -> Tenant:
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            raise BadRequest("send one Authorization header, not several")
        return self._tenants.identify(given[0] if given else None)

    async def models(self, request: Request) -> JSONResponse:
        """The models of this server."""
        tenant, served = self.tenant(request), self._corridor.served
        cards = [model_card(s.model, self._created, s.adapter) for name, s in served.items() if may_use(tenant, name)]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request, model_id: str) -> JSONResponse:
        """One model: context length, templates, profiles, and its licence and model card as they came with it."""
        served = self._corridor.find(model_id, self.tenant(request))
        card = model_card(served.model, self._created, served.adapter)
        return JSONResponse({**card, "licence_details": served.licence})

    async def usage(self, request: Request) -> JSONResponse:
        """What your tenant used: `since`, `until`, `by` (day, model, key), `limit`, `cursor`."""
        tenant = self.tenant(request)
        check_scope(tenant, "usage")
        if self._usage_of is None:
            raise NotFound("this server keeps no ledger")
        query = once(request.query_params)
        return JSONResponse(await usage_page(self._usage_of, self._reports, tenant.tenant_id, query, self._currency))

    async def health(self) -> JSONResponse:
        """200 when a request sent now would be answered, for every model."""
        try:
            self._corridor.draining.check()
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await asyncio.gather(*(s.engine.check() for s in self._corridor.served.values() if s.adapter is None))
        except (ServeError, TimeoutError):
            return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    async def live(self) -> JSONResponse:
        """200 as long as the router runs."""
        return JSONResponse({"status": "ok"})


def install_errors(app: FastAPI) -> None:
    """Every error has OpenAI's shape; HEAD is answered wherever GET is."""

    async def serve_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServeError)
        retry = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
        return JSONResponse(error.body(), error.status, {**error.headers, **retry})

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != 405:
            return await serve_error(request, NotFound("there is no such route; /docs lists them"))
        refusal = MethodNotAllowed("this route does not take this method")
        refusal.headers = {"Allow": ", ".join(allowed_methods(request))}
        return await serve_error(request, refusal)

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it, and a client that leaves is no error of ours

    app.add_exception_handler(ServeError, serve_error)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(Heads)
    app.add_middleware(Failures)


async def _first(events: AsyncGenerator[Event, None]) -> Event:
    try:
        return await anext(events)
    except BaseException:
        await events.aclose()
        raise
