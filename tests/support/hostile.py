"""Bodies of 1 MiB that cost as much as a client can make them cost, one for each step that looks at a body.

`python -m tests.support.hostile` prints what each costs: the longest time for which the event loop stood still, and how
much memory the router took meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from serve.admin import build_admin
from serve.database import migrate, open_database
from serve.ledger.ledger import Ledger
from serve.services import Database
from serve.tenants.development import make_store
from serve.words import Secret
from tests.support.door import SETTINGS, Door
from tests.support.ticking import Ticker
from tests.support.tiny_starcoder import write_tokenizer

MIB = 1 << 20
_CHAT, _RAW, _INSTRUCT = "/v1/chat/completions", "/v1/completions", "/v1/instruct"


class Hostile(NamedTuple):
    """`step`: what has the work with it; `bound`: what bounds that."""

    step: str
    bound: str
    path: str
    body: Callable[[], bytes]


def filled(before: str, piece: str, after: str, size: int = MIB) -> Callable[[], bytes]:
    """`before`, as many pieces as fit into `size` bytes, and `after`; `#` in a piece is its number."""

    def make() -> bytes:
        room, pieces = size - len(before.encode()) - len(after.encode()), list[str]()
        if "#" not in piece:
            return (before + piece * (room // len(piece.encode())) + after).encode()
        while room > 0:
            pieces.append(piece.replace("#", str(len(pieces))))
            room -= len(pieces[-1].encode())
        return (before + "".join(pieces[:-1]) + after).encode()

    return make


def _json(value: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(value).encode()


_MODEL = '{"model":"tiny","max_tokens":8'
_TEXT = _MODEL + ',"prompt":"'
_USER = _MODEL + ',"messages":[{"role":"user","content":'
_CHAIN = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)} | {"d1500": {"type": "null"}}
_MANY = 1900  # parts of a schema, just below the bound


def _schema(schema: Mapping[str, Any]) -> Callable[[], bytes]:
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {"messages": [{"role": "user", "content": "x"}], "response_format": named}
    return _json({"model": "tiny", "max_tokens": 8, **asked})


HOSTILE: dict[str, Hostile] = {
    "lists of nothing": Hostile("JSON", "caps.body_bytes", _RAW, filled(_MODEL + ',"x":[[]', ",[]", "]}")),
    "objects of nothing": Hostile("JSON", "caps.body_bytes", _RAW, filled(_MODEL + ',"x":[{}', ",{}", "]}")),
    "numbers": Hostile("JSON", "caps.body_bytes", _RAW, filled(_MODEL + ',"x":[1', ",1.5", "]}")),
    "escapes": Hostile("JSON", "caps.body_bytes", _RAW, filled(_TEXT, "\\u00e9", '"}')),
    "depth": Hostile("JSON", "200 levels", _RAW, lambda: b"[" * MIB),
    "a long number": Hostile("JSON", "4,300 digits", _RAW, filled(_MODEL + ',"x":', "1", "}")),
    "harmless fields": Hostile("fields", "none is kept", _RAW, filled(_TEXT + 'x","metadata":{"0":1', ',"#":1', "}}")),
    "unknown fields": Hostile("fields", "the first ends it", _RAW, filled(_TEXT + 'x"', ',"f#":1', "}")),
    "a long name": Hostile("fields", "100 characters", _RAW, filled(_TEXT + 'x","', "temprature", '":1}')),
    "unknown fields of a message": Hostile(
        "fields", "32 of an object", _CHAT, filled(_USER + '"x"', ',"f#":1', "}]}")
    ),
    "unknown fields of fim": Hostile(
        "fields", "32 of an object", _RAW, filled(_TEXT + 'x","suffix":"x","fim":{"a":1', ',"f#":1', "}}")
    ),
    "prompts that are none": Hostile("validation", "caps.prompts", _RAW, filled(_MODEL + ',"prompt":[{}', ",{}", "]}")),
    "prompts of ids that are none": Hostile(
        "validation", "first mistake", _RAW, filled(_MODEL + ',"prompt":[[1', ",{}", "]]}")
    ),
    "ids": Hostile("ids", "caps.body_bytes", _RAW, filled(_MODEL + ',"prompt":[1', ",1", "]}")),
    "ids that are too large": Hostile(
        "ids", "caps.body_bytes", _RAW, filled(_MODEL + ',"prompt":[[99999', ",1", "]]}")
    ),
    "stops": Hostile("validation", "caps.stops", _RAW, filled(_TEXT + 'x","stop":["a"', ',"a"', "]}")),
    "stops that are none": Hostile("validation", "caps.stops", _RAW, filled(_TEXT + 'x","stop":[1', ",1", "]}")),
    "stop token ids": Hostile(
        "validation", "caps.stop_token_ids", _RAW, filled(_TEXT + 'x","stop_token_ids":[1', ",1", "]}")
    ),
    "biases": Hostile("validation", "caps.logit_bias", _RAW, filled(_TEXT + 'x","logit_bias":{"0":1', ',"#":1', "}}")),
    "messages": Hostile(
        "validation", "caps.messages", _CHAT,
        filled(_USER + '"x"}', ',{"role":"user","content":"x"}', "]}"),
    ),
    "messages that are none": Hostile("validation", "caps.messages", _CHAT, filled(_USER + '"x"}', ",{}", "]}")),
    "parts": Hostile(
        "validation", "caps.messages", _CHAT, filled(_USER + "[{}", ',{"type":"text","text":"x"}', "]}]}")
    ),
    "parts that are none": Hostile("validation", "caps.messages", _CHAT, filled(_USER + "[{}", ",{}", "]}]}")),
    "tools": Hostile("validation", "128", _CHAT, filled(_USER + '"x"}],"tools":[{}', ",{}", "]}")),
    "tools that are none": Hostile(
        "validation", "128", _CHAT, filled(_USER + '"x"}],"tools":[{}', ",1", "]}")
    ),
    "turns of a template": Hostile(
        "rendering", "caps.messages", _CHAT,
        _json({"model": "tiny", "max_tokens": 8, "messages": [
            {"role": ("user", "assistant")[i % 2], "content": "x" * 900} for i in range(1023)]}),
    ),
    "an instruction": Hostile(
        "rendering", "caps.body_bytes", _INSTRUCT, filled(_MODEL + ',"instruction":"', "x", '"}')
    ),
    "fill-in-the-middle markers": Hostile(
        "FIM", "two readings of each order", _RAW,
        filled(_TEXT + "<fim_prefix>a", "<fim_suffix>b", '<fim_middle>"}'),
    ),
    "repository markers": Hostile(
        "FIM", "256 before the cursor", _RAW,
        filled(_TEXT + "<filename>a", "<filename>a", '<fim_prefix>a<fim_suffix>b<fim_middle>"}'),
    ),
    "one letter": Hostile("tokenizing", "caps.body_bytes", _RAW, filled(_TEXT, "a", '"}')),
    "spaces": Hostile("tokenizing", "caps.body_bytes", _RAW, filled(_TEXT, " ", 'a"}')),
    "digits": Hostile("tokenizing", "caps.body_bytes", _RAW, filled(_TEXT, "1", '"}')),
    "foxes": Hostile("tokenizing", "caps.body_bytes", _RAW, filled(_TEXT, "🦊", '"}')),
    "accents": Hostile("tokenizing", "caps.body_bytes", _RAW, filled(_TEXT + "e", "\u0301", '"}')),
    "words": Hostile("tokenizing", "caps.body_bytes", _RAW, filled(_TEXT, "word ", '"}')),
    "code around a cursor": Hostile(
        "tokenizing", "caps.body_bytes", _RAW, filled(_TEXT + 'x","truncate":true,"suffix":"', "x = 1; ", '"}')
    ),
    "properties": Hostile(
        "schema", "caps.schema_parts", _CHAT,
        _schema({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(_MANY)}}),
    ),
    "alternatives": Hostile("schema", "caps.schema_parts", _CHAT, _schema({"anyOf": [{"type": "null"}] * _MANY})),
    "values": Hostile("schema", "caps.schema_bytes", _CHAT, _schema({"type": "integer", "enum": list(range(11_000))})),
    "references": Hostile(
        "schema", "64 in a chain", _CHAT, _schema({"$defs": _CHAIN, "$ref": "#/$defs/d0"})
    ),
    "a small schema": Hostile(
        "schema", "in a thread", _CHAT,
        _schema({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(150)}}),
    ),
    "another small schema": Hostile("schema", "in a thread", _CHAT, _schema({"anyOf": [{"type": "null"}] * 200})),
    "a format of many fields": Hostile(
        "fields", "32 of an object", _CHAT,
        filled(_USER + '"x"}],"response_format":{"type":"text"', ',"f#":1', "}}"),
    ),
}  # fmt: skip


class Cost(NamedTuple):
    status: int
    param: str | None
    took_s: float
    stood_s: float
    grown_mib: float


async def cost(door: Door, hostile: Hostile) -> Cost:
    """Ask once. The engine is the fake one, so that all of it is the router's."""
    body = hostile.body()
    async with Ticker() as ticker:
        began = time.perf_counter()
        answer = await door.client.post(hostile.path, content=body)
        took_s = time.perf_counter() - began
    param = answer.json()["error"]["param"] if answer.status_code != 200 else None
    return Cost(answer.status_code, param, took_s, ticker.stood_s, ticker.grown_mib)


_NAMES = "&".join(f"{i:x}" for i in range(3500))  # in a head of 15 KiB, which is all that HAProxy lets through
_LIMITS = '{"id":"acme","limits":{"#":1'
ADMIN: dict[str, Hostile] = {
    "unknown fields": Hostile("administration", "64 KiB", "/tenants", filled('{"id":"acme"', ',"f#":1', "}", 1 << 16)),
    "unknown limits": Hostile("administration", "64 KiB", "/tenants", filled(_LIMITS, ',"f#":1', "}}", 1 << 16)),
    "models": Hostile(
        "administration", "256 of them", "/tenants", filled('{"id":"acme","models":["m"', ',"m#"', "]}", 1 << 16)
    ),
    "depth": Hostile("administration", "64 KiB", "/tenants", lambda: b"[" * (1 << 16)),
}
QUERIES: dict[str, str] = {
    "usage, many names": f"/v1/usage?{_NAMES}",
    "usage, one name often": "/v1/usage?" + "&".join(["by=day"] * 2000),
    "usage, a long cursor": "/v1/usage?cursor=" + "W1tb" * 3500,
    "models, a long name": "/v1/models/" + "m" * 14_000,
}


async def told(client: httpx.AsyncClient, method: str, path: str, body: bytes | None, rounds: int) -> str:
    """The last four columns of a row."""
    stood, grown, took, answer = list[float](), list[float](), list[float](), None
    for _ in range(rounds):
        async with Ticker() as ticker:
            began = time.perf_counter()
            answer = await client.request(method, path, content=body)
            took.append(time.perf_counter() - began)
        stood.append(1000 * ticker.stood_s)
        grown.append(ticker.grown_mib)
    assert answer is not None
    param = "" if answer.status_code == 200 else str(answer.json()["error"]["param"] or "")[:40]
    return f"{answer.status_code} {param} | {min(took):.2f} | {max(stood):.0f} | {max(grown):.0f} |"


async def main(rounds: int = 5) -> None:
    """Print the table of docs/costs.md: the fastest answer, the longest standstill, the most memory of all rounds."""
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder)
        (words / "config.json").write_text(json.dumps({"vocab_size": write_tokenizer(words)}))
        database = open_database(f"sqlite:///{words}/ledger.db")
        migrate(database)
        ledger = Ledger(words / "journal", "router-0", database, print)
        ledger.start()
        door = Door(words, {**SETTINGS, "caps": {"refused_per_minute": 1_000_000}}, ledger)
        print("| step | what is sent | bounded by | answer | seconds | loop stood, ms | memory, MiB |")
        print("|---|---|---|---|---|---|---|")
        async with httpx.AsyncClient(transport=door.client._transport, base_url="http://test") as client:
            client.headers = door.client.headers
            await client.post(_RAW, json={"model": "tiny", "prompt": "x"})  # imports what only the first one does
            for name, h in HOSTILE.items():
                row = await told(client, "POST", h.path, h.body(), rounds)
                print(f"| {h.step} | {name} | {h.bound} | {row}", flush=True)
            for name, path in QUERIES.items():
                print(
                    f"| queries | {name} | a head of 15 KiB | {await told(client, 'GET', path, None, rounds)}",
                    flush=True,
                )
        store, token = make_store(Database(), words), Secret("admin-" + "t" * 64)
        transport = httpx.ASGITransport(build_admin(store, token, None, "EUR"))
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://admin/admin/v1", headers=headers) as client:
            for name, h in ADMIN.items():
                row = await told(client, "POST", h.path, h.body(), rounds)
                print(f"| {h.step} | {name} | {h.bound} | {row}", flush=True)
        store.close()
        await door.client.aclose()
        await asyncio.to_thread(ledger.stop)
        database.dispose()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
