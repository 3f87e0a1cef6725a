"""The public door, with the deterministic engine behind it. The real engine's twin: tests/test_stack.py."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.app import build
from serve.engines.fake import FakeEngine
from serve.settings import parse
from serve.tenants import Tenants, make_development_keys
from serve.words import Record

FORMS: dict[str, dict[str, Any]] = {
    "/v1/instruct": {"instruction": "Sort."},
    "/v1/completions": {"prompt": "def f("},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Sort."}]},
}
SETTINGS = {
    "models": [
        {"name": "tiny", "source": {"folder": "/nowhere"}, "context_tokens": 512, "engine": {"device": "cpu"}}
    ]
}  # fmt: skip


class Door:
    """A router over a fake engine, and what it logged."""

    def __init__(self, words_folder: Path, folder: Path, settings: dict[str, Any] = SETTINGS) -> None:
        make_development_keys(folder / "keys", folder / "key")
        self.key, self.engine, self.records = (folder / "key").read_text(), FakeEngine(), list[Record]()
        tenants = Tenants.read(folder / "keys")
        app = build(parse(settings), {"tiny": words_folder}, lambda _: self.engine, tenants, self.records.append)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {self.key}"}
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    async def post(self, path: str, **changes: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": "tiny", **FORMS[path], "max_tokens": 8, **changes})


@pytest.fixture
async def door(words_folder: Path, tmp_path: Path) -> AsyncIterator[Door]:
    opened = Door(words_folder, tmp_path)
    async with opened.client:
        yield opened


def is_openai_error(answer: httpx.Response) -> bool:
    return set(answer.json()["error"]) == {"message", "type", "param", "code"}


def chunks(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


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


BAD: list[tuple[str, dict[str, Any], int, str | None]] = [
    ("/v1/completions", {"temperature": -1}, 400, "temperature"),
    ("/v1/completions", {"model": "nobody"}, 404, "model"),
    ("/v1/completions", {"prompt": ""}, 400, "prompt"),
    ("/v1/completions", {"prompt": []}, 400, "prompt"),
    ("/v1/completions", {"prompt": [10**6]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [-1]}, 400, "prompt[0]"),
    ("/v1/completions", {"prompt": None}, 400, "prompt"),
    ("/v1/completions", {"prompt": {"a": 1}}, 400, "prompt"),
    ("/v1/completions", {"stop": "x" * 20_000}, 400, "stop"),
    ("/v1/completions", {"stop": ["a"] * 5}, 400, "stop"),
    ("/v1/completions", {"max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", {"max_tokens": 10**7}, 400, "max_tokens"),
    ("/v1/completions", {"max_tokens": "8"}, 400, "max_tokens"),
    ("/v1/completions", {"n": 9}, 400, "n"),
    ("/v1/completions", {"n": 2, "temperature": 0}, 400, "n"),
    ("/v1/completions", {"n": 2, "best_of": 3}, 400, "best_of"),
    ("/v1/completions", {"prompt": ["x"] * 33}, 400, "prompt"),
    ("/v1/completions", {"prompt": ["x", ""]}, 400, "prompt"),
    ("/v1/completions", {"prompt": ["x", [1]]}, 400, "prompt[1]"),
    ("/v1/completions", {"suffix": "x"}, 400, "suffix"),
    ("/v1/completions", {"logprobs": 21}, 400, "logprobs"),
    ("/v1/completions", {"logprobs": 6, "echo": True}, 400, "logprobs"),
    ("/v1/completions", {"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ("/v1/completions", {"logit_bias": {"1": 101}}, 400, "logit_bias"),
    ("/v1/completions", {"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ("/v1/completions", {"logit_bias": {str(i): 1 for i in range(301)}}, 400, "logit_bias"),
    ("/v1/completions", {"stop_token_ids": [99999]}, 400, "stop_token_ids"),
    ("/v1/completions", {"stop_token_ids": [-1]}, 400, "stop_token_ids[0]"),
    ("/v1/completions", {"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens"),
    ("/v1/completions", {"top_k": -2}, 400, "top_k"),
    ("/v1/completions", {"min_p": 1.5}, 400, "min_p"),
    ("/v1/completions", {"presence_penalty": 3}, 400, "presence_penalty"),
    ("/v1/completions", {"repetition_penalty": 0}, 400, "repetition_penalty"),
    ("/v1/completions", {"guided_regex": "a+"}, 400, "guided_regex"),
    ("/v1/completions", {"stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x"),
    ("/v1/completions", {"temprature": 1}, 400, "temprature"),
    ("/v1/completions", {"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ("/v1/instruct", {"instruction": "x " * 2000}, 400, "instruction"),
    ("/v1/instruct", {"instruction": None}, 400, "instruction"),
    ("/v1/instruct", {"prompt": "x"}, 400, "prompt"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages"),
    ("/v1/chat/completions", {"top_logprobs": 2}, 400, "top_logprobs"),
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    ("/v1/chat/completions", {"logprobs": 1}, 400, "logprobs"),
    ("/v1/chat/completions", {"tools": [{}], "tool_choice": "required"}, 400, "tool_choice"),
    ("/v1/chat/completions", {"tools": [{}], "tool_choice": {"type": "function"}}, 400, "tool_choice"),
    ("/v1/chat/completions", {"tools": "x"}, 400, "tools"),
    ("/v1/chat/completions", {"response_format": {"type": "xml"}}, 400, "response_format.type"),
    ("/v1/chat/completions", {"response_format": {"type": "json_schema"}}, 400, "response_format"),
    ("/v1/chat/completions", {"echo": True}, 400, "echo"),
    ("/v1/chat/completions", {"priority": 1}, 400, "priority"),
    ("/v1/chat/completions", {"cache_salt": "x"}, 400, "cache_salt"),
]


@pytest.mark.parametrize(("path", "change", "status", "param"), BAD)
async def test_bad_fields_are_named(
    door: Door, path: str, change: dict[str, Any], status: int, param: str | None
) -> None:
    answer = await door.post(path, **change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert is_openai_error(answer)
    assert (await door.post(path)).status_code == 200


RAW: list[tuple[bytes, int]] = [
        (b"{", 400), (b"", 400), (b"null", 400), (b"[]", 400), (b'"x"', 400), (b"\xff\xfe", 400),
        (b'{"model": "tiny", "prompt": "\\ud800"}', 400),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', 400),
        (b"[" * 100_000, 400), (b'{"model": "' + b"x" * 10_000_000 + b'"}', 413),
]  # fmt: skip


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
    impatient = Door(words_folder, tmp_path, {**SETTINGS, "caps": {"body_timeout_s": 0.05}})

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
