"""Bodies that come compressed: decoded within their bound, or refused by name."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from starlette.requests import Request

from serve.admin import build_admin
from serve.errors import BadRequest, BodyTooLarge, UnsupportedCoding
from serve.services import Database
from serve.tenants.development import make_store
from serve.wire.body import read_body
from serve.wire.codings import MOST_MEMBERS, codings_of, decoded
from serve.words import Secret
from tests.support.door import Door, is_openai_error

BOUND = 1 << 20
TEXT = json.dumps({"model": "tiny", "prompt": "def f(", "max_tokens": 4}).encode()


def bare_deflate(body: bytes) -> bytes:
    packed = zlib.compressobj(wbits=-15)
    return packed.compress(body) + packed.flush()


def streamed_zstd(body: bytes) -> bytes:
    """As a client writes that does not know the length before: no content size in the frame."""
    packed = zstandard.ZstdCompressor().compressobj()
    return packed.compress(body) + packed.flush()


ENCODERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "zstd": ("zstd", zstandard.compress),
    "streamed zstd": ("zstd", streamed_zstd),
    "several members": ("gzip", lambda body: b"".join(gzip.compress(body[i : i + 9]) for i in range(0, len(body), 9))),
    "several frames": ("zstd", lambda body: zstandard.compress(body[:9]) + zstandard.compress(body[9:])),
    "one over the other": ("gzip, zstd", lambda body: zstandard.compress(gzip.compress(body))),
    "nothing": ("identity", bytes),
}


@pytest.mark.parametrize("name", ENCODERS)
async def test_a_compressed_body_is_read(door: Door, name: str) -> None:
    header, encode = ENCODERS[name]
    answer = await door.client.post("/v1/completions", content=encode(TEXT), headers={"Content-Encoding": header})
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 4)


@pytest.mark.parametrize("name", ["br", "compress", "zstd, br", "gzip,gzip,gzip", "snappy\u00e9", "*"])
async def test_a_coding_that_is_not_known_is_refused_by_name(door: Door, name: str) -> None:
    headers = {"Content-Encoding": name.encode()}
    answer = await door.client.post("/v1/completions", content=TEXT, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")
    assert answer.json()["error"]["param"] == "Content-Encoding"
    assert answer.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert is_openai_error(answer)


def broken(name: str) -> list[bytes]:
    whole = ENCODERS[name][1](TEXT * 20)
    flipped = bytes([*whole[:-3], whole[-3] ^ 0xFF, *whole[-2:]])  # in a sum that zstd may leave out
    return [b"", TEXT, whole[:-1], whole[: len(whole) // 2], whole + b"x", *([] if name == "zstd" else [flipped])]


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
async def test_a_body_that_is_no_such_stream_is_refused(door: Door, name: str) -> None:
    for body in broken(name):
        answer = await door.client.post("/v1/completions", content=body, headers={"Content-Encoding": name})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Content-Encoding"), body[:20]
        assert name in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["gzip", "deflate", "bare deflate", "zstd", "streamed zstd", "one over the other"])
def test_a_bomb_holds_no_more_memory_than_the_bound(name: str) -> None:
    header, encode = ENCODERS[name]
    bomb = encode(bytes(16 * BOUND))
    assert len(bomb) < BOUND
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decoded(bomb, codings_of([header]), BOUND)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * BOUND


@pytest.mark.parametrize("name", ["gzip", "deflate", "bare deflate", "zstd", "streamed zstd", "one over the other"])
def test_the_bound_itself_is_allowed(name: str) -> None:
    header, encode = ENCODERS[name]
    for size in (0, 1, BOUND - 1, BOUND):
        assert decoded(encode(bytes(size)), codings_of([header]), BOUND) == bytes(size)
    with pytest.raises(BodyTooLarge):
        decoded(encode(bytes(BOUND + 1)), codings_of([header]), BOUND)


def test_frames_that_hold_nothing_hide_no_bomb() -> None:
    """What counts the output and what tells the end are two readers; neither may stop where the other goes on."""
    nothing, text = zstandard.compress(b""), zstandard.compress(b"hello")
    skipped = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"abcde"
    bomb = zstandard.compress(bytes(16 * BOUND))
    for before in (nothing, skipped, text + nothing, skipped + text + skipped, (nothing + skipped) * 9):
        assert decoded(before + text, ["zstd"], BOUND) == b"hello" * (1 + (text in before))
        tracemalloc.start()
        with pytest.raises(BodyTooLarge):
            decoded(before + bomb, ["zstd"], BOUND)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.5 * BOUND


def test_many_small_members_cost_no_time() -> None:
    for coding, empty in (("gzip", gzip.compress(b"")), ("zstd", zstandard.compress(b""))):
        began = time.thread_time()
        with pytest.raises(BadRequest):
            decoded(empty * (BOUND // len(empty)), [coding], BOUND)
        assert time.thread_time() - began < 1
        assert decoded(empty * MOST_MEMBERS, [coding], BOUND) == b""


def test_a_frame_may_not_ask_for_a_huge_window() -> None:
    """128 MiB are allocated for it otherwise, before a byte is decoded."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(BadRequest):
        decoded(packed.compress(b"x") + packed.flush(), ["zstd"], BOUND)


def test_codings_are_read_as_a_list_over_several_headers() -> None:
    assert codings_of(["", "identity", " GZIP ,", "zstd"]) == ("gzip", "zstd")
    with pytest.raises(UnsupportedCoding):
        codings_of(["gzip", "gzip, gzip"])


async def test_the_admin_api_reads_compressed_bodies_within_its_own_bound(tmp_path: Path) -> None:
    token = Secret("admin-" + "t" * 64)
    transport = httpx.ASGITransport(build_admin(make_store(Database(), tmp_path), token), raise_app_exceptions=False)
    bearer = {"Authorization": f"Bearer {token.reveal()}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=bearer) as client:
        for coding, body, status in (
            ("gzip", gzip.compress(b'{"id": "acme"}'), 201),
            ("zstd", zstandard.compress(b'{"id": "acme-2"}'), 201),
            ("gzip", gzip.compress(b'{"id": "' + b"x" * (1 << 20) + b'"}'), 413),
            ("gzip", b'{"id": "acme-3"}', 400),
            ("br", b'{"id": "acme-4"}', 415),
        ):
            answer = await client.post("/admin/v1/organisations", content=body, headers={"Content-Encoding": coding})
            assert answer.status_code == status


async def test_decoding_runs_in_a_thread() -> None:
    """A few hundred bytes may decode to all that is allowed, which would hold the event loop."""
    called = list[Any]()

    async def run(function: Callable[..., bytes], *arguments: Any) -> bytes:
        called.append(function)
        return await asyncio.to_thread(function, *arguments)

    async def receive() -> Any:
        return {"type": "http.request", "body": gzip.compress(TEXT), "more_body": False}

    for header, expected in ((b"gzip", TEXT), (b"identity", gzip.compress(TEXT))):
        scope = {"type": "http", "method": "POST", "headers": [(b"content-encoding", header)]}
        body = await read_body(Request(scope, receive), BOUND, 1, run)
        assert (body[10:], len(called)) == (expected[10:], 1)
