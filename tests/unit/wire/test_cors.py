"""CORS: off by default; what a page of a named origin may do and read, errors included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.settings import SettingsError, parse
from tests.support.door import SETTINGS, Door, is_openai_error

PAGE, OTHER = "https://ide.example.com", "https://elsewhere.example.com"
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


def opened(words_folder: Path, *origins: str) -> Door:
    return Door(words_folder, {**SETTINGS, "http": {"cors_origins": list(origins)}})


async def asked(door: Door, method: str, path: str, headers: Mapping[str, str], **more: Any) -> httpx.Response:
    """Without the judge of OpenAI's shapes: a preflight's answer has none."""
    transport = httpx.ASGITransport(door.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=headers, **more)


async def broken() -> None:
    raise RuntimeError("a fault of ours")


def allowed(answer: httpx.Response) -> str | None:
    return dict(answer.headers).get("access-control-allow-origin")


async def test_without_the_setting_no_page_may_read_anything(door: Door) -> None:
    answer = await asked(door, "GET", "/health", {"Origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert (await asked(door, "OPTIONS", "/v1/models", {"Origin": PAGE, **PREFLIGHT})).status_code == 405


@pytest.mark.parametrize(("origins", "expected"), [((PAGE, "http://localhost:3000"), PAGE), (("*",), "*")])
async def test_a_preflight_is_answered_without_a_key(
    words_folder: Path, origins: tuple[str, ...], expected: str
) -> None:
    door = opened(words_folder, *origins)
    answer = await asked(door, "OPTIONS", "/v1/chat/completions", {"Origin": PAGE, **PREFLIGHT})
    assert (answer.status_code, allowed(answer)) == (200, expected)
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["x-request-id"]


async def test_a_preflight_of_another_page_is_refused_in_openais_shape(words_folder: Path) -> None:
    door = opened(words_folder, PAGE)
    for headers in ({"Origin": OTHER}, {"Origin": PAGE + ".evil.com"}, {"Origin": "null"}):
        answer = await asked(door, "OPTIONS", "/v1/chat/completions", {**PREFLIGHT, **headers})
        assert (answer.status_code, allowed(answer)) == (403, None)
        assert is_openai_error(answer)
    assert allowed(await asked(door, "GET", "/health", {"Origin": OTHER})) is None


async def test_answers_streams_and_errors_may_be_read(words_folder: Path) -> None:
    door = opened(words_folder, PAGE)
    key = {"Origin": PAGE, "Authorization": f"Bearer {door.key}"}
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    path = "/v1/completions"
    answers = {
        200: await asked(door, "POST", path, key, json=body),
        201: await asked(door, "POST", path, key, json={**body, "stream": True}),
        400: await asked(door, "POST", path, key, json={**body, "n": 99}),
        401: await asked(door, "POST", path, {"Origin": PAGE}, json=body),
        404: await asked(door, "GET", "/nowhere", key),
        405: await asked(door, "GET", path, key),
        413: await asked(door, "POST", path, key, content=bytes(2 << 20)),
    }
    door.engine.alive = False
    answers[503] = await asked(door, "POST", path, key, json=body)
    door.app.add_api_route("/broken", broken)
    answers[500] = await asked(door, "GET", "/broken", key)
    for status, answer in answers.items():
        assert answer.status_code == (200 if status == 201 else status)
        assert allowed(answer) == PAGE
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert exposed >= {
            "x-request-id",
            "x-ratelimit-remaining-tokens",
            "retry-after",
            "x-machine-generated",
            "warning",
        }
        assert "Origin" in answer.headers["vary"]
        assert answer.headers["x-request-id"]
        assert "access-control-allow-credentials" not in answer.headers
    assert answers[201].text.endswith("data: [DONE]\n\n")


async def test_a_page_may_reach_its_users_own_machine_only_by_name(words_folder: Path) -> None:
    asking = {"Origin": PAGE, **PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
    named = await asked(opened(words_folder, PAGE), "OPTIONS", "/v1/models", asking)
    anybody = await asked(opened(words_folder, "*"), "OPTIONS", "/v1/models", asking)
    assert (named.status_code, named.headers["access-control-allow-private-network"]) == (200, "true")
    assert anybody.status_code == 403


@pytest.mark.parametrize(
    "origins",
    [
        ["example.com"],
        ["https://example.com/"],
        ["https://Example.com"],
        ["*", PAGE],
        ["https://a b"],
        ["null"],
        "*",
        ["https://x.com\n    bind *:1"],
        ["https://x.com:0"],
    ],
)
def test_what_is_no_origin_is_refused(origins: Any) -> None:
    with pytest.raises(SettingsError, match="cors_origins"):
        parse({**SETTINGS, "http": {"cors_origins": origins}})


def test_origins_of_pages_editors_and_local_servers_are_taken() -> None:
    origins = (PAGE, "http://127.0.0.1:5173", "http://[::1]:80", "vscode-webview://abc123", "chrome-extension://abcdef")
    assert parse({**SETTINGS, "http": {"cors_origins": list(origins)}}).http.cors_origins == origins
