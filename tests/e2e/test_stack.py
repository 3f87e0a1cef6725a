"""The whole way, real at every step: HAProxy, router, Ray, vLLM and a tiny random StarCoder in float32.

Both proxies; test_breaking.py and test_stopping.py end what runs.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.support.asks import ANSWER_TOKENS, ASKS, greedy_ids
from tests.support.bad_adapters import BAD as BAD_ADAPTERS
from tests.support.bad_requests import BAD, RAW
from tests.support.deployment import Deployment
from tests.support.door import FORMS, chunks, is_openai_error
from tests.support.http_bytes import exchange, first_answer, request
from tests.support.http_clients.recorded import CLIENTS, sent_by
from tests.support.readme import block
from tests.support.stack import Stack, count, wait_for

LONG = 2000  # tokens of an answer that goes on for seconds


@pytest.fixture(scope="session")
def sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key=stack.key, max_retries=0) as opened:
        yield opened


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("form", ASKS)
def test_greedy_token_ids_are_those_of_hugging_face(
    client: httpx.Client, starcoder_folder: Path, form: str, stream: bool
) -> None:
    path, ask, prompt = ASKS[form]
    expected = greedy_ids(starcoder_folder, prompt)
    assert len(set(expected)) >= 16
    body = {"model": "tiny", **ask, "max_tokens": ANSWER_TOKENS, "temperature": 0, "return_token_ids": True}
    answer = client.post(path, json={**body, "stream": stream})
    pieces = chunks(answer) if stream else [answer.json()]
    served = [i for piece in pieces for choice in piece["choices"] for i in choice.get("token_ids", [])]
    assert tuple(served) == expected
    assert tuple(served) != greedy_ids(starcoder_folder, prompt, change=2.0)


def test_token_id_prompts_are_the_callers_own_words(client: httpx.Client, starcoder_folder: Path) -> None:
    from transformers import AutoTokenizer

    prompt = "def f(x):\n    return"
    ids = AutoTokenizer.from_pretrained(starcoder_folder)(prompt).input_ids
    body = {"model": "tiny", "prompt": ids, "max_tokens": ANSWER_TOKENS, "temperature": 0, "return_token_ids": True}
    answer = client.post("/v1/completions", json=body).json()
    assert tuple(answer["choices"][0]["token_ids"]) == greedy_ids(starcoder_folder, prompt)
    assert answer["usage"]["prompt_tokens"] == len(ids)


@pytest.mark.parametrize("path", FORMS)
def test_the_stream_joined_is_the_unary_answer(client: httpx.Client, path: str) -> None:
    body = {"model": "tiny", **FORMS[path], "max_tokens": 40, "temperature": 0}
    unary = client.post(path, json=body).json()
    *pieces, last = chunks(client.post(path, json={**body, "stream": True, "stream_options": {"include_usage": True}}))
    choices = [choice for piece in pieces for choice in piece["choices"]]
    text = "".join(c.get("text", c.get("delta", {}).get("content")) or "" for c in choices)
    whole = unary["choices"][0]
    assert text == whole.get("text", whole.get("message", {}).get("content"))
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == [whole["finish_reason"]]
    assert len({piece["id"] for piece in [*pieces, last]}) == 1
    assert last["usage"]["completion_tokens"] == unary["usage"]["completion_tokens"] == 40


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: httpx.Client) -> None:
    body = {"model": "tiny", "prompt": "def f(x):", "max_tokens": 40, "temperature": 0}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    stop = whole[10:13]
    choice = client.post("/v1/completions", json={**body, "stop": [stop]}).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_the_official_sdk_asks_and_streams(sdk: openai.OpenAI) -> None:
    assert {model.id for model in sdk.models.list()} == {"tiny", "pair", "good", *BAD_ADAPTERS}
    assert sdk.models.retrieve("tiny").id == "tiny"
    messages: Any = [{"role": "user", "content": "Sort."}]
    whole = sdk.chat.completions.create(model="tiny", messages=messages, max_tokens=20, temperature=0)
    stream = sdk.chat.completions.create(model="tiny", messages=messages, max_tokens=20, temperature=0, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == whole.choices[0].message.content
    raw = sdk.completions.create(model="tiny", prompt="def f(", max_tokens=20, temperature=0, seed=1)
    assert raw.usage is not None
    assert raw.usage.completion_tokens == 20
    with pytest.raises(openai.NotFoundError, match="no such model"):
        sdk.chat.completions.create(model="none", messages=messages)
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="sk-000000000000_000000000000000000000000").models.list()


async def test_the_official_sdk_works_asynchronously(stack: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=f"{stack.address}/v1", api_key=stack.key, max_retries=0) as sdk:
        asks = [
            sdk.completions.create(model="tiny", prompt=f"x = {i}", max_tokens=30, temperature=0) for i in range(12)
        ]
        alone = await sdk.completions.create(model="tiny", prompt="x = 3", max_tokens=30, temperature=0)
        assert (await asyncio.gather(*asks))[3].choices[0].text == alone.choices[0].text


def test_a_client_that_leaves_frees_the_engine_within_two_seconds(shared: Deployment, sdk: openai.OpenAI) -> None:
    stack, probe = shared.stack, shared.probe
    # Eight times eight answers, so that the engine has work for many times as long as the client stays.
    ask: dict[str, Any] = {"model": "tiny", "prompt": ["x"] * 8, "max_tokens": LONG, "n": 8}
    ask["extra_body"] = {"ignore_eos": True}
    for stream in (True, False):
        before = len(stack.requests_logged())
        if stream:
            leaving = sdk.completions.create(**ask, stream=True)
            begun = iter(leaving)  # kept: the SDK closes the stream of an iterator that nobody holds
            next(begun)
            assert probe.running() >= 8
            leaving.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                sdk.with_options(timeout=0.5).completions.create(**ask)
        left = time.monotonic()
        asked = left
        while probe.running():
            assert asked - left < 2
            asked = time.monotonic()
        wait_for(partial(cancelled_since, stack, before), within_s=15)
        (line,) = cancelled_since(stack, before)
        assert line["output_tokens"] < 8 * 8 * LONG / 2


@pytest.mark.parametrize(("path", "change", "status", "param"), BAD)
def test_bad_fields_are_named_and_the_engine_lives(
    client: httpx.Client, path: str, change: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"model": "tiny", **FORMS[path], "max_tokens": 2}
    answer = client.post(path, json={**body, **change})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert is_openai_error(answer)
    assert client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(("raw", "status"), RAW)
def test_bodies_that_are_no_request_are_refused_and_the_engine_lives(
    client: httpx.Client, raw: bytes, status: int
) -> None:
    answer = client.post("/v1/completions", content=raw)
    assert answer.status_code == status
    assert is_openai_error(answer)
    assert client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}).status_code == 200


def test_the_examples_of_the_readme_run(stack: Stack, tmp_path: Path) -> None:
    """As they stand, but for this stack's port, model and home folder."""
    home = tmp_path / ".starserve" / "8000"
    home.mkdir(parents=True)
    (home / "development.key").write_text(stack.key)
    for command, example in (("sh", block("sh", "curl http")), ("python", block("python", "OpenAI"))):
        ours = example.replace("127.0.0.1:8000", f"127.0.0.1:{stack.port}").replace("smollm2-135m-instruct", "tiny")
        running = ["sh", "-c", ours] if command == "sh" else [sys.executable, "-c", ours]
        done = subprocess.run(running, capture_output=True, env={**os.environ, "HOME": str(tmp_path)}, check=True)
        assert done.stdout
        assert b'"error"' not in done.stdout


def test_the_edge_answers_broken_http_in_openais_shape(stack: Stack, client: httpx.Client) -> None:
    answer = client.get("/-/routes")
    assert answer.status_code in (200, 404)
    for header in ("x-request-disconnect-disabled", "serve_multiplexed_model_id", "x-request-timeout-seconds"):
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}, headers={header: "1"})
        assert answer.status_code == 200
    ids = client.get("/health", headers={"X-Request-Id": "abc"}).headers.get_list("x-request-id")
    assert ids == ["abc"]


async def test_http_is_answered_as_clients_speak_it(stack: Stack, variant: str) -> None:
    """What tests/unit/wire and tests/integration/deploy show of the parts, through all of them."""
    for client in CLIENTS:
        answer = await first_answer(stack.port, sent_by(client, stack.key))
        assert answer.status == 200, client
    key, ask = ("Authorization", f"Bearer {stack.key}"), {"model": "tiny", "prompt": "x", "max_tokens": 3}
    for offer in ("TLS/1.2", "websocket", "h2c"):
        handshake = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        headers = [key, ("Connection", "Upgrade, close"), ("Upgrade", offer), handshake]
        assert (await exchange(stack.port, request("/v1/completions", headers, ask))).status == 200, offer
    old = await exchange(stack.port, request("/v1/completions", [key], {**ask, "stream": True}, version="1.0"))
    assert "transfer-encoding" not in old.headers
    assert old.body.endswith(b"data: [DONE]\n\n")
    headers = [("Expect", "100-continue"), ("Content-Length", "60")]
    refused = await first_answer(stack.port, request("/v1/completions", headers))
    assert (refused.status, refused.error()["code"]) == (401, "invalid_api_key")
    assert refused.interim == [] or variant == "plain"
    half = await exchange(stack.port, request("/v1/completions", [key], {**ask, "max_tokens": LONG}), shut=True)
    assert (half.status, half.error()["type"]) == (400, "invalid_request_error")


def test_nothing_but_loopback_listens(stack: Stack) -> None:
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in stack.below()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or (not connection.raddr and connection.status == "NONE")
    }
    assert ("127.0.0.1", stack.port) in listening
    assert [place for place in listening if not is_loopback(place[0])] == []


def test_metrics_count_requests_tokens_and_errors_and_are_not_public(stack: Stack, client: httpx.Client) -> None:
    body = {"model": "pair", "prompt": "canary-4711", "max_tokens": 7, "ignore_eos": True}
    before = stack.settled_metrics()
    prompt = sum(client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"] for _ in range(3))
    client.post("/v1/completions", json={**body, "n": 99})
    expected = {
        "starserve_requests": 3, "starserve_output_tokens": 21, "starserve_prompt_tokens": prompt,
        "vllm_generation_tokens": 21, "starserve_ttft_seconds_count": 3, "starserve_tpot_seconds_count": 3,
        "starserve_queue_seconds_count": 3, "vllm_time_to_first_token_seconds_count": 3, "refused": 1,
    }  # fmt: skip

    def grown() -> dict[str, float]:
        now = stack.metrics()
        # Of this model alone: what tests before this one asked of the other may still be on its way.
        told = {name: count(now, name, '="pair"') - count(before, name, '="pair"') for name in expected}
        refused = partial(count, name="starserve_requests", label='code="invalid_value"')
        return {**told, "refused": refused(now) - refused(before)}

    deadline = time.monotonic() + 30
    while grown() != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    assert grown() == expected
    assert "canary" not in str(stack.metrics())
    assert client.get("/metrics").status_code == 404


def test_files_of_the_instance_are_its_owners_alone(stack: Stack) -> None:
    assert stack.folder.stat().st_mode & 0o777 == 0o700
    for name in ("development.key", "pepper", "starserve.db", "ray.token"):
        assert (stack.folder / name).stat().st_mode & 0o777 == 0o600
    assert stack.key not in stack.logged()


def cancelled_since(stack: Stack, before: int) -> list[dict[str, Any]]:
    """Lines come late, so those of requests of other tests may be among the newest."""
    return [line for line in stack.requests_logged()[before:] if line["outcome"] == "cancelled"]


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback
