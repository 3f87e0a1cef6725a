"""Bodies and headers that nobody would think of: none is a server's error, none holds the event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serve.wire.bodies import BODIES
from serve.wire.fields import HARMLESS, REFUSED
from serve.words import Ceilings
from tests.support.door import FORMS, SETTINGS, Door, is_openai_error
from tests.support.ticking import Ticker

FEW, MANY = 500, 20_000
STOOD_S = {FEW: 0.5, MANY: 0.1}  # the many are asked alone on their machine, the few beside other tests
GROWN_MIB, EACH = 64, 250
_NAMES = sorted({name for body in BODIES.values() for name in body.model_fields} | HARMLESS.keys() | REFUSED.keys())
_EDGES = [0, -1, 1, 2**31 - 1, 2**31, 2**53, 2**63, -(2**63) - 1, 10**400, 0.0, -0.0, 5e-324, 1e308, float("nan"),
          float("inf"), True, "", "x", "\x00", "\ud800", "🦊", "e\u0301", "<|endoftext|>", "<fim_prefix>", "text",
          "json_object", "json_schema", "user", "assistant", "tiny", [], {}, [[]], [{}],
          {"type": "object"}]  # fmt: skip
_leaves = st.sampled_from(_EDGES) | st.none() | st.integers(-10, 600) | st.floats() | st.text(max_size=12)
_values: st.SearchStrategy[Any] = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=8,
)
_HEADERS = ["x-request-id", "traceparent", "content-type", "accept", "authorization", "content-encoding", "origin",
            "x-request-timeout-seconds", "content-length", "range", "cookie", "expect"]  # fmt: skip


class Asked(NamedTuple):
    path: str
    body: bytes
    headers: list[tuple[bytes, bytes]]


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """A body that is nearly right, with some fields changed and perhaps some bytes, and some odd headers."""
    path = draw(st.sampled_from(sorted(FORMS)))
    changes = draw(st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=6), _values, max_size=3))
    body = json.dumps({"model": "tiny", **FORMS[path], "max_tokens": 2, **changes}).encode("utf-8")
    if draw(st.integers(0, 9)) == 0:
        at, piece = draw(st.integers(0, len(body))), draw(st.binary(max_size=6))
        body = draw(st.sampled_from([body[:at], body[:at] + piece + body[at:], piece + body, b"\xef\xbb\xbf" + body]))
    printable = st.binary(max_size=40).map(lambda raw: bytes(b for b in raw if b >= 0x20 and b != 0x7F))
    headers = draw(st.lists(st.tuples(st.sampled_from(_HEADERS).map(str.encode), printable), max_size=2))
    return Asked(path, body, headers)


class Bombarded:
    """A door that stays open for all examples, on a loop that runs in a thread and so never waits for the next one."""

    def __init__(self, words_folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        caps = {"refused_per_minute": 10**6}
        modest = {"ceilings": Ceilings(output_tokens=4, choices=8)}  # or an example may make thousands of tokens
        self._door = Door(words_folder, {**SETTINGS, "caps": caps}, tenant=modest)
        self.asked = 0
        for path in FORMS:  # the first ones import, and read what judges answers
            self.run(self.ask(Asked(path, json.dumps({"model": "tiny", **FORMS[path]}).encode(), [])))
        self.ticker, self.asked = Ticker(), 0
        self.run(self.ticker.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def ask(self, one: Asked) -> None:
        self.asked += 1
        answer = await self._door.client.post(one.path, content=one.body, headers=one.headers)
        assert answer.status_code < 500, (answer.text, one)
        if answer.status_code >= 400:
            assert is_openai_error(answer)
        assert not self._door.engine.running

    def collect(self) -> None:
        """Collect what the making of examples leaves, which is no part of a router: its pauses do not count."""
        stood_s = self.ticker.stood_s
        gc.collect()
        gc.freeze()
        self.run(asyncio.sleep(0.01))
        self.ticker.stood_s = stood_s

    def close(self) -> None:
        self.run(self.ticker.__aexit__(None, None, None))
        self.run(self._door.client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def bombarded(words_folder: Path) -> Iterator[Bombarded]:
    made = Bombarded(words_folder)
    yield made
    made.close()


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_no_body_and_no_header_is_a_servers_error_or_stops_the_loop(bombarded: Bombarded, examples: int) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(asked())
    def ask(one: Asked) -> None:
        if bombarded.asked % EACH == 0:
            bombarded.collect()
        if bombarded.asked == examples // 2:
            bombarded.ticker.forget_growth()
        bombarded.run(bombarded.ask(one))

    gc.disable()
    try:
        ask()
    finally:
        gc.enable()
    assert bombarded.ticker.grown_mib < GROWN_MIB
    assert bombarded.ticker.stood_s < STOOD_S[examples]
