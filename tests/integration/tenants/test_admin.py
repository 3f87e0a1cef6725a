"""The admin API by its own door: what it does, who it lets in, and what nobody gets through it."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.admin import build_admin
from serve.services import Database
from serve.tenants.development import make_store
from serve.tenants.store import Store
from serve.tenants.tables import METADATA
from serve.words import Secret
from tests.support.door import Door
from tests.support.people import bearer, made, router

TOKEN = Secret("admin-" + "t" * 64)


def opened(store: Store, authorization: str | None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_admin(store, TOKEN), raise_app_exceptions=False)
    headers = {"Authorization": authorization} if authorization is not None else {}
    return httpx.AsyncClient(transport=transport, base_url="http://admin/admin/v1", headers=headers)


@pytest.fixture
async def admin(store: Store) -> AsyncIterator[httpx.AsyncClient]:
    async with opened(store, f"Bearer {TOKEN.reveal()}") as client:
        yield client


async def ok(call: Any, status: int = 200) -> Any:
    answer = await call
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


async def refused(call: Any, status: int, code: str) -> str:
    answer = await call
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return str(answer.json()["error"]["message"])


async def test_a_tenant_s_whole_life(admin: httpx.AsyncClient, store: Store) -> None:
    await ok(admin.post("/organisations", json={"id": "acme"}), 201)
    tenant = await ok(
        admin.post("/tenants", json={"id": "web", "organisation": "acme", "models": ["a"], "band": "batch"}), 201
    )
    assert (tenant["models"], tenant["band"], tenant["weight"]) == (["a"], "batch", 1.0)
    new = await ok(admin.post("/tenants/web/keys", json={"name": "ci", "scopes": ["generate"]}), 201)
    key_id, first = new["key"]["key_id"], f"Bearer {new['secret']}"
    tenants = router(store)
    assert tenants.identify(first).scopes == frozenset({"generate"})
    changed = await ok(admin.patch("/tenants/web", json={"limits": {"tokens_per_minute": 10}}))
    assert (changed["limits"], changed["models"]) == ({"tokens_per_minute": 10}, ["a"])
    rotated = await ok(admin.post(f"/keys/{key_id}/rotate", json={"grace_s": 60}))
    tenants.refresh(store)
    assert tenants.identify(first) == tenants.identify(f"Bearer {rotated['secret']}")
    await refused(admin.post(f"/keys/{key_id}/rotate"), 409, "conflict")
    assert (await ok(admin.post("/tenants/web/suspend")))["suspended"]
    assert not (await ok(admin.post("/tenants/web/resume")))["suspended"]
    assert [k["key_id"] for k in (await ok(admin.get("/keys?tenant=web")))["data"]] == [key_id]
    await ok(admin.delete(f"/keys/{key_id}"), 204)
    await refused(admin.get(f"/keys/{key_id}"), 404, "not_found")
    acts = (await ok(admin.get("/audit?object=web")))["data"]
    assert [a["act"] for a in acts] == ["resume", "suspend", "change", "create"]
    assert {a["actor"] for a in acts} == {"admin API"}


async def test_lists_come_in_pages(admin: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await ok(admin.post("/organisations", json={"id": name}), 201)
    first = await ok(admin.get("/organisations?limit=2"))
    assert ([o["organisation_id"] for o in first["data"]], first["has_more"]) == (["a", "b"], True)
    rest = await ok(admin.get("/organisations?limit=2&after=b"))
    assert ([o["organisation_id"] for o in rest["data"]], rest["has_more"]) == (["c"], False)
    log = await ok(admin.get("/audit?limit=1"))
    older = await ok(admin.get(f"/audit?before={log['data'][0]['audit_id']}"))
    assert [a["object_id"] for a in older["data"]] == ["b", "a"]


ROUTES = [("GET", "/organisations"), ("POST", "/organisations"), ("GET", "/tenants/web"), ("PATCH", "/tenants/web"),
          ("DELETE", "/tenants/web"), ("POST", "/tenants/web/keys"), ("POST", "/keys/x/rotate"), ("GET", "/audit"),
          ("GET", "/nothing"), ("GET", "/../../health"), ("OPTIONS", "/tenants")]  # fmt: skip


async def test_nothing_is_open_without_the_token(store: Store) -> None:
    key = made(store)
    wrong = [None, "", "Bearer", "Bearer ", bearer(key), f"Basic {TOKEN.reveal()}", f"Bearer {TOKEN.reveal()}x",
             f"Bearer {TOKEN.reveal()[:-1]}", "Bearer ' OR 1=1 --", "Bearer " + "é" * 9]  # fmt: skip
    async with opened(store, None) as client:
        for method, path in ROUTES:
            for authorization, host in itertools.product(wrong, ("admin", "evil/?", "evil/#")):
                headers = [] if authorization is None else [(b"authorization", authorization.encode())]
                call = client.request(method, path, headers=[*headers, (b"host", host.encode())])
                await refused(call, 401, "invalid_api_key")
            twice = [("Authorization", f"Bearer {TOKEN.reveal()}")] * 2
            await refused(client.request(method, path, headers=twice), 401, "invalid_api_key")
    assert len(store.page("tenant")) == 1


async def test_the_admin_token_opens_no_public_route(words_folder: Path, tmp_path: Path) -> None:
    door = Door(words_folder)
    headers = {"Authorization": f"Bearer {TOKEN.reveal()}"}
    assert (await door.client.get("/v1/models", headers=headers)).status_code == 401
    assert (await door.client.get("/health/../admin/v1/tenants", headers=headers)).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [("POST", "/tenants/web/keys", {"name": "n", "models": ["other"]}, "invalid_value"),
     ("POST", "/tenants/web/keys", {"name": "n", "scopes": ["admin"]}, "invalid_value"),
     ("POST", "/tenants/web/keys", {"name": "n", "tenant_id": "other"}, "unknown_parameter"),
     ("POST", "/tenants/web/keys", {"name": "n", "key_id": "deadbeefdead"}, "unknown_parameter"),
     ("POST", "/tenants/web/keys", {"name": "n", "digest": "0" * 64}, "unknown_parameter"),
     ("POST", "/tenants/web/keys", {"name": "n", "secrets": []}, "unknown_parameter"),
     ("POST", "/tenants/web/keys", {}, "invalid_value"),
     ("PATCH", "/keys/KEY", {"models": ["a", "other"]}, "invalid_value"),
     ("PATCH", "/keys/KEY", {"tenant_id": "other"}, "unknown_parameter"),
     ("PATCH", "/keys/KEY", {"removed": False}, "unknown_parameter"),
     ("PATCH", "/tenants/web", {"organisation_id": "other"}, "unknown_parameter"),
     ("PATCH", "/tenants/web", {"cache_salt": "x"}, "unknown_parameter"),
     ("PATCH", "/tenants/web", {"limits": {"tokens_per_week": 1}}, "unknown_parameter"),
     ("PATCH", "/tenants/web", {"weight": 1e9}, "invalid_value"),
     ("PATCH", "/tenants/web", {"weight": float("nan")}, "invalid_value"),
     ("PATCH", "/tenants/web", [], "invalid_value"),
     ("POST", "/keys/KEY/rotate", {"grace_s": -1}, "invalid_value"),
     ("POST", "/organisations", {"id": "../x"}, "invalid_value"),
     ("POST", "/organisations", {"id": "x\u0000"}, "invalid_value")],
)  # fmt: skip
async def test_nothing_gets_more_than_it_may(
    admin: httpx.AsyncClient, store: Store, method: str, path: str, body: Any, code: str
) -> None:
    key = made(store, tenant={"models": ["a"]}).key
    before = (store.page("key"), store.page("tenant"), len(store.audit()))
    await refused(admin.request(method, path.replace("KEY", key.key_id), content=json.dumps(body)), 400, code)
    assert (store.page("key"), store.page("tenant"), len(store.audit())) == before


@pytest.mark.parametrize("path", [
    "/tenants/%00", "/tenants/'%20OR%201=1--", "/keys/%2e%2e", "/tenants?after=%00", "/tenants?order=1",
    "/audit?limit=0", "/audit?limit=9999999", "/audit?before=x", "/tenants?limit=%C2%B2", "/keys?tenant=';--",
])  # fmt: skip
async def test_odd_addresses_are_refused_in_words(admin: httpx.AsyncClient, path: str) -> None:
    answer = await admin.get(path)
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_body_that_is_too_large_or_no_json_is_refused(admin: httpx.AsyncClient) -> None:
    await refused(admin.post("/organisations", content=b"[" * 70_000), 413, "body_too_large")
    await refused(admin.post("/organisations", content=b"\xff{"), 400, "invalid_value")


async def test_a_secret_is_told_once_and_stands_in_no_log_error_or_row(
    admin: httpx.AsyncClient, store: Store, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    made(store)
    answer = await admin.post("/tenants/web/keys", json={"name": "canary"})
    assert answer.headers["cache-control"] == "no-store"
    text = answer.json()["secret"]
    rotated = (await ok(admin.post(f"/keys/{answer.json()['key']['key_id']}/rotate")))["secret"]
    await refused(admin.post("/tenants/web/keys", json={"name": "canary"}), 409, "conflict")
    await refused(admin.post("/tenants/web/keys", json={"name": text}), 400, "invalid_value")
    seen = [(await admin.get(path)).text for path in ("/keys", "/tenants", "/organisations", "/audit?limit=1000")]
    told = "".join(seen) + caplog.text + "".join(capfd.readouterr())
    for canary in (text, rotated):
        assert canary.split("_")[1] not in told
    digests = [s.digest for k in store.page("key") for s in getattr(k, "secrets", ())]
    assert len(digests) == 3
    assert not any(d in told for d in digests)


async def test_a_database_that_fails_is_told_without_its_statements(database: Database, tmp_path: Path) -> None:
    broken = make_store(database, tmp_path)
    METADATA.drop_all(broken._engine)
    async with opened(broken, f"Bearer {TOKEN.reveal()}") as client:
        answer = await client.get("/tenants")
    broken.close()
    assert answer.status_code in (500, 503)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "SELECT" not in answer.text
