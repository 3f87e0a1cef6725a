"""The admin API: organisations, tenants, keys, what they used, and the log of every act.

On a port of its own, never the public one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError

from serve.errors import BadRequest, NotFound, Unauthorized
from serve.tenants.given import Given, Id, KeyGiven, OrganisationGiven, TenantGiven, explained
from serve.tenants.rows import NewKey
from serve.tenants.showing import shown
from serve.tenants.store import Store
from serve.threads import Threads
from serve.wire.body import read_body
from serve.wire.usage import UsageOf, everybodys_page, once, report_threads
from serve.words import Level, Secret

ACTOR = "admin API"
MOST = 1000  # objects on one page
_BODY_BYTES = 1 << 16
_BODY_TIMEOUT_S = 30.0
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_PLURAL: dict[Level, str] = {"organisation": "organisations", "tenant": "tenants", "key": "keys"}
_GIVEN: dict[Level, type[Given]] = {"organisation": OrganisationGiven, "tenant": TenantGiven, "key": KeyGiven}
_PARENT: dict[Level, str] = {"tenant": "organisation", "key": "tenant"}
_NEVER_KEPT = {"Cache-Control": "no-store"}
_M = TypeVar("_M", bound=BaseModel)


class NewOrganisation(OrganisationGiven):
    id: Id


class NewTenant(TenantGiven):
    id: Id
    organisation: Id


class Rotation(Given):
    grace_s: float = Field(3600, strict=True, ge=0, le=366 * 86400, description="How long the older secret opens.")


class AdminApi:
    """Routes over the store. It blocks, so each call of it runs in a thread. `usage_of` reads the ledger.

    Acts have threads of their own: a key is revoked however many lists and reports are asked for.
    """

    def __init__(self, store: Store, usage_of: UsageOf | None, currency: str) -> None:
        self._store, self._usage_of, self._currency = store, usage_of, currency
        self._acts, self._reads, self._reports = Threads(2, "act"), Threads(3, "read", most=32), report_threads()

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/admin/v1")
        routes: list[tuple[str, str, Callable[..., Any]]] = [
            ("POST", "/organisations", self.create_organisation),
            ("POST", "/tenants", self.create_tenant),
            ("POST", "/tenants/{object_id}/keys", self.create_key),
            ("POST", "/keys/{object_id}/rotate", self.rotate),
            ("GET", "/audit", self.audit),
            ("GET", "/usage", self.usage),
        ]
        for level, plural in _PLURAL.items():
            routes += [
                ("GET", f"/{plural}", self._list(level)),
                ("GET", f"/{plural}/{{object_id}}", self._get(level)),
                ("PATCH", f"/{plural}/{{object_id}}", self._change(level)),
                ("DELETE", f"/{plural}/{{object_id}}", self._remove(level)),
                ("POST", f"/{plural}/{{object_id}}/suspend", self._suspend(level, True)),
                ("POST", f"/{plural}/{{object_id}}/resume", self._suspend(level, False)),
            ]
        for method, path, call in routes:
            router.add_api_route(path, call, methods=[method], response_model=None)
        return router

    async def _given(self, request: Request, model: type[_M]) -> _M:
        raw = await read_body(request, _BODY_BYTES, _BODY_TIMEOUT_S, partial(self._reads.run, ""))
        try:
            return model.model_validate_json(raw or b"{}")
        except ValidationError as e:
            raise explained(e, model) from None

    async def create_organisation(self, request: Request) -> JSONResponse:
        given = await self._given(request, NewOrganisation)

        def act() -> Any:
            with self._store.acting(ACTOR) as acts:
                return shown(acts.create_organisation(given.id, given))

        return JSONResponse(await self._acts.run("", act), 201)

    async def create_tenant(self, request: Request) -> JSONResponse:
        given = await self._given(request, NewTenant)

        def act() -> Any:
            with self._store.acting(ACTOR) as acts:
                return shown(acts.create_tenant(given.id, given.organisation, given))

        return JSONResponse(await self._acts.run("", act), 201)

    async def create_key(self, request: Request) -> JSONResponse:
        tenant_id, given = _object_id(request), await self._given(request, KeyGiven)

        def act() -> JSONResponse:
            with self._store.acting(ACTOR) as acts:
                return _told_once(acts.create_key(tenant_id, given), 201)

        return await self._acts.run("", act)

    async def rotate(self, request: Request) -> JSONResponse:
        key_id, given = _object_id(request), await self._given(request, Rotation)

        def act() -> JSONResponse:
            with self._store.acting(ACTOR) as acts:
                return _told_once(acts.rotate(key_id, given.grace_s), 200)

        return await self._acts.run("", act)

    async def audit(self, request: Request) -> JSONResponse:
        """Newest first; `object`: of one object; `before`: older than that `audit_id`."""
        query = _query(request, {"object", "before", "limit"})
        before, most = _number(query, "before", 2**63 - 1), _number(query, "limit", MOST) or 100
        rows = await self._reads.run("", self._store.audit, query.get("object"), before, most + 1)
        return _page([shown(row) for row in rows], most)

    async def usage(self, request: Request) -> JSONResponse:
        """What was used: `tenant`, `organisation`, and as GET /v1/usage, `by` those two besides."""
        if self._usage_of is None:
            raise NotFound("this deployment keeps no ledger")
        query = once(request.query_params)
        return JSONResponse(await everybodys_page(self._usage_of, self._reports, query, self._currency))

    def _list(self, level: Level) -> Callable[..., Any]:
        async def list_them(request: Request) -> JSONResponse:
            query = _query(request, {"after", "limit"} | ({_PARENT[level]} if level in _PARENT else set()))
            parent, most = query.get(_PARENT.get(level, "")), _number(query, "limit", MOST) or 100
            rows = await self._reads.run("", self._store.page, level, parent, query.get("after", ""), most + 1)
            return _page([shown(row) for row in rows], most)

        return list_them

    def _get(self, level: Level) -> Callable[..., Any]:
        async def get(request: Request) -> JSONResponse:
            return JSONResponse(shown(await self._reads.run("", self._store.get, level, _object_id(request))))

        return get

    def _change(self, level: Level) -> Callable[..., Any]:
        async def change(request: Request) -> JSONResponse:
            object_id, given = _object_id(request), await self._given(request, _GIVEN[level])

            def act() -> Any:
                with self._store.acting(ACTOR) as acts:
                    return shown(acts.change(level, object_id, given))

            return JSONResponse(await self._acts.run("", act))

        return change

    def _suspend(self, level: Level, suspended: bool) -> Callable[..., Any]:
        async def suspend(request: Request) -> JSONResponse:
            object_id = _object_id(request)

            def act() -> Any:
                with self._store.acting(ACTOR) as acts:
                    return shown((acts.suspend if suspended else acts.resume)(level, object_id))

            return JSONResponse(await self._acts.run("", act))

        return suspend

    def _remove(self, level: Level) -> Callable[..., Any]:
        async def remove(request: Request) -> Response:
            object_id = _object_id(request)

            def act() -> None:
                with self._store.acting(ACTOR) as acts:
                    acts.remove(level, object_id)

            await self._acts.run("", act)
            return Response(status_code=204)

        return remove


class Credential:
    """ASGI middleware in front of everything: without the one token there is a 401, whatever the path says."""

    def __init__(self, app: Any, token: Secret) -> None:
        self._app, self._digest = app, _sha256(token.reveal().encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)  # type: ignore[no-any-return]
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        right = hmac.compare_digest(_sha256(token), self._digest)
        if scope["type"] == "http" and scheme.lower() == b"bearer" and right:
            return await self._app(scope, receive, send)  # type: ignore[no-any-return]
        error = Unauthorized("send the admin token of this deployment as `Authorization: Bearer …`")
        return await JSONResponse(error.body(), error.status)(scope, receive, send)


def _object_id(request: Request) -> str:
    object_id = str(request.path_params["object_id"])
    if not _ID.match(object_id):
        raise NotFound("there is nothing with such an id")
    return object_id


def _query(request: Request, known: set[str]) -> dict[str, str]:
    query = once(request.query_params)
    for name, value in query.items():
        if name not in known:
            raise BadRequest(f"{name[:100]}: unknown parameter; there are {', '.join(sorted(known))}", name[:100])
        if not _ID.match(value):
            raise BadRequest(f"{name}: an id or a number", name)
    return query


def _number(query: dict[str, str], name: str, most: int) -> int | None:
    value = query.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= most:
        raise BadRequest(f"{name}: a whole number from 1 to {most}", name)
    return int(value)


def _page(rows: list[dict[str, Any]], most: int) -> JSONResponse:
    """`rows`: one more than asked for where there are more."""
    return JSONResponse({"object": "list", "data": rows[:most], "has_more": len(rows) > most})


def _told_once(made: NewKey, status: int) -> JSONResponse:
    """A key with its text, which no client can ask for again: made inside the transaction, so that both are or none."""
    return JSONResponse({"key": shown(made.key), "secret": made.secret.reveal()}, status, _NEVER_KEPT)


def _sha256(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
