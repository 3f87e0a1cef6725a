"""The real HAProxy with our hardened file, alone: what it refuses, what it lets through, and what arrives behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serve.deploy import haproxy
from tests.support.door import Door
from tests.support.edge import edge
from tests.support.http_bytes import checked, exchange, first_answer, request, serving_beside

PAGE = "https://ide.example.com"
OFFERS = ["TLS/1.2", "h2c", "websocket", "perhaps/9, TLS/1.3"]
HANDSHAKE = [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Sec-WebSocket-Version", "13")]


@pytest.fixture(scope="module")
def behind(words_folder: Path) -> Iterator[tuple[Door, int]]:
    """A router over the fake engine, on a port as in a replica."""
    door = Door(words_folder)
    with serving_beside(checked(door.app)) as port:
        yield door, port


@pytest.fixture(scope="module")
def front(behind: tuple[Door, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with edge(tmp_path_factory.mktemp("edge"), behind[1]) as port:
        yield port


@pytest.fixture
def door(behind: tuple[Door, int]) -> Iterator[Door]:
    yield behind[0]
    behind[0].engine.tpot_s = 0


def ask(door: Door, *headers: tuple[str, str], version: str = "1.1", **changes: Any) -> bytes:
    body = {"model": "tiny", "prompt": "def f(", "max_tokens": 4, **changes}
    return request("/v1/completions", [("Authorization", f"Bearer {door.key}"), *headers], body, version=version)


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that writes down each request, byte by byte, and closes."""
    requests = list[bytes]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = await reader.readuntil(b"\r\n\r\n")
        if b"/-/healthz" not in sent:
            lengths = [line for line in sent.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            sent += await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
            requests.append(sent)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], requests


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_no_offer_to_upgrade_reaches_a_router(tmp_path: Path, method: str) -> None:
    async with recording() as (port, requests):
        with edge(tmp_path, port) as front:
            for offer in OFFERS:
                headers = [("Connection", "Upgrade, close"), ("Upgrade", offer), *HANDSHAKE]
                answer = await exchange(front, request("/v1/x", headers, b"the body", method))
                assert (answer.status, answer.body) == (200, b"{}")
    assert len(requests) == len(OFFERS)
    for sent in requests:
        head, _, body = sent.partition(b"\r\n\r\n")
        assert b"upgrade" not in head.lower()
        assert body == b"the body"


async def test_a_client_that_offers_gets_its_answer(front: int, door: Door) -> None:
    for offer in OFFERS:
        sent = ask(door, ("Connection", "Upgrade, close"), ("Upgrade", offer), *HANDSHAKE)
        for pieces in ([sent], [sent[:-20], sent[-20:]], [sent[:40], sent[40:]]):
            answer = await exchange(front, *pieces)
            assert (answer.status, json.loads(answer.body)["object"]) == (200, "text_completion")


async def test_a_stream_to_http_1_0_has_no_chunks(front: int, door: Door) -> None:
    answer = await exchange(front, ask(door, stream=True, version="1.0"))
    assert "transfer-encoding" not in answer.headers
    assert answer.body.startswith(b"data: {")
    assert answer.body.endswith(b"data: [DONE]\n\n")
    kept = await exchange(front, ask(door, ("Connection", "keep-alive"), stream=True, version="1.0"))
    assert kept.body.endswith(b"data: [DONE]\n\n")


async def test_continue_comes_only_where_the_body_is_wanted(front: int, door: Door) -> None:
    expect = ("Expect", "100-continue")
    no_key = await first_answer(front, request("/v1/completions", [expect, ("Content-Length", "60")]))
    assert (no_key.interim, no_key.status, no_key.error()["code"]) == ([], 401, "invalid_api_key")
    large = [expect, ("Authorization", f"Bearer {door.key}"), ("Content-Length", str(2 << 20))]
    too_large = await first_answer(front, request("/v1/completions", large))
    assert (too_large.interim, too_large.status) == ([], 413)
    sent = ask(door, expect)
    head, _, body = sent.partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", front)
    writer.write(head + b"\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100 Continue")
    writer.write(body)
    assert b"text_completion" in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_a_half_closed_client_gets_a_true_sentence(front: int, door: Door) -> None:
    door.engine.tpot_s = 0.05
    for _ in range(3):
        answer = await exchange(front, ask(door, max_tokens=400), shut=True)
        assert answer.status == 400
        assert "closed from your side" in answer.error()["message"]
    async with asyncio.timeout(2):
        while door.engine.running:  # noqa: ASYNC110 - no engine works for who may have left
            await asyncio.sleep(0.01)


TAUGHT: dict[str, tuple[bytes, int, str]] = {
    "a head of 16 kB": (request("/health", [("Cookie", "x" * 16_000)], method="GET"), 431, "headers_too_large"),
    "a head of 30 kB": (request("/health", [("X-Much", "x" * 30_000)], method="GET"), 431, "headers_too_large"),
    "no path": (request("*", method="OPTIONS"), 404, "not_found"),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 405, "method_not_allowed"),
}
# Compiled into HAProxy 2.8, with its own status: see docs/http.md. Whoever updates HAProxy, look whether it can learn.
UNTAUGHT: dict[str, tuple[bytes, int]] = {
    "a head of 40 kB": (request("/health", [("X-Much", "x" * 40_000)], method="GET"), 400),
    "a websocket without its key": (
        request("/health", [("Upgrade", "websocket"), ("Connection", "Upgrade")], method="GET"),
        400,
    ),
    "a bad header name": (request("/health", [("Bad name", "x")], method="GET"), 400),
    "two lengths": (request("/health", [("Content-Length", "1"), ("Content-Length", "2")], b"ab"), 400),
    "an unknown transfer coding": (request("/health", [("Transfer-Encoding", "gzip, chunked")], b"0\r\n\r\n"), 422),
    "a bad chunk with the head": (request("/v1/completions", [("Transfer-Encoding", "chunked")], b"xyz\r\n"), 400),
}


@pytest.mark.parametrize("name", TAUGHT)
async def test_what_haproxy_refuses_has_openais_shape(front: int, name: str) -> None:
    sent, status, code = TAUGHT[name]
    answer = await first_answer(front, sent)
    assert (answer.status, answer.error()["code"]) == (status, code)


@pytest.mark.parametrize("name", UNTAUGHT)
async def test_what_haproxy_cannot_be_taught_is_still_refused(front: int, name: str) -> None:
    sent, status = UNTAUGHT[name]
    answer = await exchange(front, sent)
    assert (answer.status, answer.headers["content-type"]) == (status, "text/html")


async def test_a_body_that_breaks_its_framing_has_openais_shape(front: int, door: Door) -> None:
    head = ask(door, ("Transfer-Encoding", "chunked")).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    answer = await exchange(front, head + b"5\r\n", b"{    \r\nxyz\r\n", pause_s=0.1)
    assert (answer.status, answer.error()["type"]) == (400, "invalid_request_error")


async def test_the_id_of_a_request_is_one_from_edge_to_router(front: int, door: Door, tmp_path: Path) -> None:
    for given, kept in (("abc-1", True), ("a b", False), ("", False)):
        answer = await exchange(front, ask(door, ("X-Request-Id", given)))
        assert (answer.headers["x-request-id"] == given) is kept
        assert door.records[-1].client_request_id == answer.headers["x-request-id"]


async def test_without_a_router_the_edge_answers_with_the_requests_id(tmp_path: Path) -> None:
    origins = " ".join([*(f"https://team-{i}.example.com:8443" for i in range(100)), PAGE])
    with edge(tmp_path, 9, **{haproxy.ORIGINS: origins}) as front:
        headers = [("X-Request-Id", "abc-1"), ("Origin", PAGE)]
        answer = await exchange(front, request("/v1/models", headers, method="GET"))
        other = await exchange(front, request("/v1/models", [("Origin", PAGE + "x")], method="GET"))
    assert (answer.status, answer.error()["code"], answer.headers["retry-after"]) == (503, "router_unavailable", "5")
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "retry-after" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers


async def test_rays_own_routes_are_closed_however_they_are_written(behind: tuple[Door, int], tmp_path: Path) -> None:
    with edge(tmp_path, behind[1], host="::1") as front:  # not 127.0.0.1, from where Ray asks
        for path in (
            "/-/routes",
            "/%2d/routes",
            "/%2D%2Froutes",
            "/-/healthz",
            "/%2d/%68ealthz",
            "http://test/%2d/routes",
        ):
            answer = await exchange(front, request(path, method="GET"), host="::1")
            assert (answer.status, answer.error()["code"]) == (404, "not_found")
            assert b"secret-name" not in answer.body
        assert (await exchange(front, request("/health", method="GET"), host="::1")).status == 200
