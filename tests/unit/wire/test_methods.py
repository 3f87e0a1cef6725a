"""HEAD is answered wherever GET is, and a method that a route does not take is told which it takes."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from serve.admin import build_admin
from serve.services import Database
from serve.tenants.development import make_store
from serve.words import Secret
from tests.support.door import Door, is_openai_error
from tests.support.people import made

TOKEN = Secret("admin-" + "t" * 64)
PUBLIC = [
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/none",
    "/v1/usage",
    "/health",
    "/health/live",
    "/docs",
    "/",
    "/openapi.json",
    "/docs/assets/swagger-ui.css",
    "/nowhere",
]
ADMIN = ["organisations", "organisations/acme", "tenants", "tenants/web", "keys", "audit", "usage", "tenants/nobody"]
UNLIKE = {"x-request-id", "date"}  # differ between any two answers


@pytest.fixture
def admin(tmp_path: Path) -> httpx.AsyncClient:
    store = make_store(Database(), tmp_path)
    made(store)
    transport = httpx.ASGITransport(build_admin(store, TOKEN), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {TOKEN.reveal()}"}
    return httpx.AsyncClient(transport=transport, base_url="http://test/admin/v1/", headers=headers)


async def alike(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert head.status_code == got.status_code
    assert head.content == b""
    assert {k: v for k, v in head.headers.items() if k not in UNLIKE} == {
        k: v for k, v in got.headers.items() if k not in UNLIKE
    }


@pytest.mark.parametrize("path", PUBLIC)
async def test_head_answers_as_get_does_without_a_body(door: Door, path: str) -> None:
    await alike(door.client, path)


@pytest.mark.parametrize("path", ADMIN)
async def test_head_answers_in_the_admin_api_too(admin: httpx.AsyncClient, path: str) -> None:
    await alike(admin, path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("OPTIONS", "/health", "GET, HEAD"),
        ("PUT", "/docs", "GET, HEAD"),
        ("POST", "/docs/assets/swagger-ui.css", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(door: Door, method: str, path: str, allowed: str) -> None:
    answer = await door.client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or is_openai_error(answer)


async def test_the_admin_api_tells_them_of_all_its_routes(admin: httpx.AsyncClient) -> None:
    expected = {
        "tenants/web": "DELETE, GET, HEAD, PATCH",
        "tenants": "GET, HEAD, POST",
        "keys": "GET, HEAD",
        "tenants/web/keys": "POST",
        "keys/x/rotate": "POST",
        "audit": "GET, HEAD",
    }
    for path, allowed in expected.items():
        answer = await admin.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert is_openai_error(answer)
