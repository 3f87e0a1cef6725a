"""The public door, with the deterministic engine behind it. The real engine's twin: tests/e2e/test_stack.py."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.bad_requests import BAD, RAW
from tests.support.door import FORMS, SETTINGS, Door, chunks, is_openai_error


@pytest.mark.parametrize("path", FORMS)
async def test_the_stream_joined_is_the_unary_answer(door: Door, path: str) -> None:
    unary = (await door.post(path, return_token_ids=True)).json()
    answer = await door.post(path, return_token_ids=True, stream=True, stream_options={"include_usage": True})
    *pieces, last = chunks(answer)
    text = [c.get("text", c.get("delta", {}).get("content")) or "" for p in pieces for c in p["choices"]]
    choice = unary["choices"][0]
    assert "".join(text) == choice.get("text", choice.get("message", {}).get("content"))
    assert [i for p in pieces for c in p["choices"] for i in c.get("token_ids", [])] == choice["token_ids"]
    assert [c["finish_reason"] for p in pieces for c in p["choices"] if c["finish_reason"]] == ["length"]
    assert last["usage"] == unary["usage"]
    assert last["choices"] == []
    assert len({p["id"] for p in [*pieces, last]}) == 1


async def test_max_tokens_defaults_to_what_fits_and_to_16_on_the_raw_form(door: Door) -> None:
    for path, expected in (("/v1/instruct", None), ("/v1/chat/completions", None), ("/v1/completions", 16)):
        usage = (await door.post(path, max_tokens=None)).json()["usage"]
        assert usage["completion_tokens"] == (expected or 512 - usage["prompt_tokens"])


@pytest.mark.parametrize(("path", "change", "status", "param"), BAD)
async def test_bad_fields_are_named(
    door: Door, path: str, change: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await door.post(path, **change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert is_openai_error(answer)
    assert (await door.post(path)).status_code == 200


@pytest.mark.parametrize(("raw", "status"), RAW)
async def test_bodies_that_are_no_request_are_refused(door: Door, raw: bytes, status: int) -> None:
    answer = await door.client.post("/v1/completions", content=raw)
    assert answer.status_code == status
    assert is_openai_error(answer)


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer sk-aaaaaaaaaaaa_" + "b" * 48, "Basic x", "Bearer ' OR 1=1 --"]
)
async def test_every_v1_route_needs_a_key(door: Door, header: str) -> None:
    for method, path in [("GET", "/v1/models"), ("GET", "/v1/models/tiny"), *(("POST", p) for p in FORMS)]:
        answer = await door.client.request(method, path, headers={"Authorization": header})
        assert answer.status_code == 401
        assert is_openai_error(answer)


async def test_two_authorization_headers_are_refused(door: Door) -> None:
    pair = [("Authorization", f"Bearer {door.key}")] * 2
    bare = httpx.AsyncClient(transport=door.client._transport, base_url="http://test")
    assert (await bare.get("/v1/models", headers=pair)).status_code == 400


async def test_unknown_routes_and_methods_have_openais_error_shape(door: Door) -> None:
    for answer in (await door.client.get("/nowhere"), await door.client.get("/v1/completions")):
        assert answer.status_code in (404, 405)
        assert is_openai_error(answer)


async def test_models_tell_context_and_template(door: Door) -> None:
    card = (await door.client.get("/v1/models/tiny")).json()
    assert (card["max_model_len"], card["templates"]["instruct"]) == (512, "alpaca")
    assert [m["id"] for m in (await door.client.get("/v1/models")).json()["data"]] == ["tiny"]
    assert (await door.client.get("/v1/models/none")).status_code == 404


async def test_the_request_id_is_echoed_when_it_is_printable_and_short(door: Door) -> None:
    for given, kept in (("abc-1", True), ("x" * 129, False), ("a b", False)):
        answer = await door.client.get("/health", headers={"X-Request-Id": given})
        assert (answer.headers["x-request-id"] == given) is kept


async def test_docs_work_without_internet(door: Door) -> None:
    page = (await door.client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (await door.client.get(f"/{asset}")).status_code == 200
    routes = (await door.client.get("/openapi.json")).json()["paths"]
    assert {*FORMS, "/v1/models", "/health"} <= set(routes)


async def test_a_dead_engine_is_a_503_and_a_death_in_the_stream_is_told_in_band(door: Door) -> None:
    door.engine.fail_after = 3
    answer = await door.post("/v1/completions", stream=True)
    assert '"engine_lost"' in answer.text
    assert "[DONE]" not in answer.text
    assert (await door.post("/v1/completions")).status_code == 503
    door.engine.alive = False
    answer = await door.post("/v1/completions", stream=True)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert (await door.client.get("/health")).status_code == 503
    assert (await door.client.get("/health/live")).status_code == 200


async def test_a_body_that_trickles_in_is_refused(words_folder: Path, tmp_path: Path) -> None:
    impatient = Door(words_folder, {**SETTINGS, "caps": {"body_timeout_s": 0.05}})

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(10)

    async with impatient.client as client:
        answer = await client.post("/v1/completions", content=trickle())
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "request_timeout")


async def test_probes_may_ask_with_head(door: Door) -> None:
    assert (await door.client.head("/health")).status_code == 200
    assert (await door.client.head("/health/live")).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_stops_the_engine(door: Door, stream: bool) -> None:
    door.engine.tpot_s = 0.05
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 400, "stream": stream}).encode()
    left, messages = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        return None

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "http_version": "1.1",
             "headers": [(b"authorization", f"Bearer {door.key}".encode())], "asgi": {"version": "3.0"}}  # fmt: skip
    transport: Any = door.client._transport
    serving = asyncio.create_task(transport.app(scope, receive, send))
    await door.engine.began.wait()
    left.set()
    await asyncio.wait_for(serving, 2)
    assert not door.engine.running
    assert door.records[-1].outcome == "cancelled"


async def test_no_prompt_and_no_key_is_logged_or_told(door: Door) -> None:
    canary = "canary-4711"
    for changes in ({}, {"stop": [canary]}, {"temperature": -1}, {canary: 1}, {"model": canary}):
        await door.post("/v1/completions", prompt=canary, **changes)
    told = repr(door.records)
    assert canary not in told
    assert door.key not in told
    assert canary not in repr(door.engine.jobs)
    assert door.records[0].outcome == "done"


async def test_tenants_have_salts_of_their_own(door: Door) -> None:
    await door.post("/v1/completions")
    assert len(door.engine.jobs[0].cache_salt.reveal()) == 64
