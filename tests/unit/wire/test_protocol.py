"""How bytes become requests: offers to upgrade, HTTP/1.0, 100 Continue, half-closed clients, what is no HTTP."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from serve.wire.protocol import HttpProtocol
from tests.support.door import Door
from tests.support.http_bytes import exchange, first_answer, reply_of, request, serving

BODY = b'{"model": "tiny", "prompt": "def f(", "max_tokens": 4}'
OFFERS = {
    "tls": b"Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n",
    "websocket": b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "and close": b"Connection: Upgrade, close\r\nUpgrade: TLS/1.2\r\n",
    "close and": b"Upgrade: TLS/1.2\r\nConnection: close\r\nConnection: Upgrade\r\n",
    "unheard of": b"connection: upgrade\r\nUPGRADE: perhaps/9, TLS/1.3\r\nUpgrade: more\r\n",
}


class Wire(asyncio.Transport):
    """One end of a connection in memory; `told` is what the server has written."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        config = Config(app, http=HttpProtocol, ws="none", log_level="critical", lifespan="off")
        self.told, self._closing = bytearray(), False
        self._protocol = HttpProtocol(config, ServerState(), {})
        self._protocol.connection_made(self)

    def send(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def write(self, data: Any) -> None:
        self.told += data

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name, default)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Tells the method, target and body that it was asked with."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    told = json.dumps([scope["method"], scope["path"], body.decode()]).encode()
    headers = [(b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


async def answers(wire: Wire, expected: int) -> list[Any]:
    """The bodies of so many answers of `echo`."""
    async with asyncio.timeout(5):
        while wire.told.count(b"\r\n\r\n") < expected:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return [json.loads(part[: part.index(b"]") + 1]) for part in bytes(wire.told).split(b"\r\n\r\n")[1:]]


def offering(offer: bytes, method: str = "POST", chunked: bool = False) -> bytes:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(BODY)
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    return b"%b /v1/completions HTTP/1.1\r\nHost: test\r\n%b%b\r\n\r\n%b" % (method.encode(), offer, length, body)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offer_to_upgrade_is_ignored_and_its_body_kept(offer: str, chunked: bool) -> None:
    """However the bytes are cut."""
    sent = offering(OFFERS[offer], chunked=chunked)
    for cut in range(1, len(sent)):
        wire = Wire(echo)
        wire.send(sent[:cut])
        wire.send(sent[cut:])
        assert await answers(wire, 1) == [["POST", "/v1/completions", BODY.decode()]]
        wire.close()
    wire = Wire(echo)
    for byte in sent:
        wire.send(bytes([byte]))
    assert await answers(wire, 1) == [["POST", "/v1/completions", BODY.decode()]]


async def test_requests_behind_an_offer_are_answered_in_their_order() -> None:
    wire = Wire(echo)
    methods = ["POST", "PUT", "DELETE", "GET", "OPTIONS"] * 3
    offers = [offer for offer in OFFERS.values() if b"close" not in offer]
    wire.send(b"".join(offering(offer, m) for offer in offers for m in methods))
    expected = [[m, "/v1/completions", BODY.decode()] for _ in offers for m in methods]
    assert await answers(wire, len(expected)) == expected


async def test_many_offers_in_one_packet_cost_no_depth() -> None:
    wire = Wire(echo)
    one = b"GET /x HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    wire.send(one * 1200)
    assert len(await answers(wire, 1200)) == 1200


@pytest.mark.parametrize("offer", OFFERS)
async def test_a_client_that_offers_gets_its_answer(door: Door, offer: str) -> None:
    lines = (line.partition(": ") for line in OFFERS[offer].decode().split("\r\n") if line)
    headers = [(name, value) for name, _, value in lines]
    sent = [("Authorization", f"Bearer {door.key}"), ("Content-Type", "application/json"), *headers]
    async with serving(door.app) as port:
        answer = await first_answer(port, request("/v1/completions", sent, BODY))
    assert (answer.status, json.loads(answer.body)["usage"]["completion_tokens"]) == (200, 4)


async def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_its_connection(door: Door) -> None:
    ask = {"model": "tiny", "prompt": "x", "max_tokens": 5, "stream": True}
    key = [("Authorization", f"Bearer {door.key}")]
    async with serving(door.app) as port:
        old = await exchange(port, request("/v1/completions", key, ask, version="1.0"))
        new = await exchange(port, request("/v1/completions", key, ask))
        whole = await exchange(port, request("/v1/completions", key, {**ask, "stream": False}, version="1.0"))
        head = await exchange(port, request("/health", method="HEAD", version="1.0"))
    assert "transfer-encoding" not in old.headers
    assert old.headers["connection"] == "close"
    assert old.body.startswith(b"data: {")
    assert old.body.endswith(b"data: [DONE]\n\n")
    assert new.headers["transfer-encoding"] == "chunked"
    assert len(whole.body) == int(whole.headers["content-length"])
    assert (head.status, head.body) == (200, b"")


async def test_the_body_is_asked_for_only_when_the_headers_do_not_forbid_it(door: Door) -> None:
    expect, key = ("Expect", "100-continue"), ("Authorization", f"Bearer {door.key}")
    forbidden = {
        401: [expect, ("Content-Length", "60")],
        413: [expect, key, ("Content-Length", str(2 << 20))],
        415: [expect, key, ("Content-Length", "60"), ("Content-Encoding", "br")],
    }
    async with serving(door.app) as port:
        for status, headers in forbidden.items():
            answer = await exchange(port, request("/v1/completions", headers))
            assert (answer.interim, answer.status) == ([], status)
            assert answer.headers["connection"] == "close"  # or the next request would be read as this one's body
        welcome = request("/v1/completions", [expect, key, ("Content-Length", str(len(BODY)))])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(welcome)
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert reply_of(await asyncio.wait_for(reader.read(), 5)).status == 200
        writer.close()
        old = await exchange(port, request("/v1/completions", [expect, key], BODY, version="1.0"))
    assert (old.interim, old.status) == ([], 200)  # HTTP/1.0 knows no interim answers


async def test_a_half_closed_client_is_told_so(door: Door) -> None:
    door.engine.tpot_s = 0.05
    key = [("Authorization", f"Bearer {door.key}")]
    ask = {"model": "tiny", "prompt": "x", "max_tokens": 400}
    async with serving(door.app) as port:
        whole = await exchange(port, request("/v1/completions", key, ask), shut=True)
        half = await exchange(port, request("/v1/completions", key, ask)[:-10], shut=True)
    for answer in (whole, half):
        assert answer.status == 400
        assert "closed from your side" in answer.error()["message"]
    assert not door.engine.running  # and no engine works for it


@pytest.mark.parametrize(
    "sent",
    [
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
        b"GET / HTTP/1.1\r\nBad name: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_openais_shape(sent: bytes) -> None:
    async with serving(echo) as port:
        answer = await exchange(port, sent)
    assert answer.status == 400
    assert answer.error()["message"] == "this is not a valid HTTP request"


@pytest.mark.parametrize("after", [b"this is no HTTP\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_follows_a_whole_request_does_not_spoil_its_answer(door: Door, after: bytes, stream: bool) -> None:
    door.engine.tpot_s = 0.02
    key = [("Authorization", f"Bearer {door.key}"), ("Connection", "keep-alive")]
    sent = request("/v1/completions", key, {**json.loads(BODY), "stream": stream})
    async with serving(door.app) as port:
        at_once = await exchange(port, sent + after)
        later = await exchange(port, sent, after, pause_s=0.04)
        queued = await exchange(port, sent + sent[:-3] + after)
    for answer in (at_once, later, queued):
        assert answer.status == 200
        assert answer.body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n" if stream else b"}")
        assert b"400 Bad" not in answer.body


async def test_connect_is_refused(door: Door) -> None:
    async with serving(door.app) as port:
        answer = await exchange(port, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    assert (answer.status, answer.error()["code"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


async def test_a_transfer_coding_that_nobody_knows_is_refused_by_name(door: Door) -> None:
    headers = [("Authorization", f"Bearer {door.key}"), ("Transfer-Encoding", "gzip, chunked")]
    async with serving(door.app) as port:
        answer = await exchange(port, request("/v1/completions", headers, b"4\r\nabcd\r\n0\r\n\r\n"))
    assert (answer.status, answer.error()["param"]) == (400, "Transfer-Encoding")


async def test_a_scope_that_leaves_the_process_says_continue_itself() -> None:
    """As in Ray Serve's own proxy, which sends the scope to a router: there nobody could say it any more."""

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        copied = pickle.loads(pickle.dumps(scope))
        assert copied["extensions"] == {"starserve.continue": None}
        await echo(copied, receive, send)

    async with serving(proxy) as port:
        headers = [("Expect", "100-continue"), ("Content-Length", "2")]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/", headers))
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100")
        writer.write(b"ab")
        assert json.loads(reply_of(await asyncio.wait_for(reader.read(), 5)).body)[2] == "ab"
        writer.close()
