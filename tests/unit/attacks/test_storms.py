"""Nothing is free and nothing leaks: aborts at every point of the way, races, and limits that somebody plays with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve.tenants.rows import Changes
from serve.words import Ceilings, Limits
from tests.support.door import FORMS
from tests.support.town import COUNTED, Town, head


@asynccontextmanager
async def town_with(words_folder: Path, folder: Path, **given: Any) -> AsyncIterator[Town]:
    town = Town(words_folder, folder, **given)
    try:
        yield town
    finally:
        await town.close()


class Leaver:
    """A client that sends its body and leaves after so many turns of the event loop, or is torn away with its task.

    `at_work`: turns count from when the engine has its job, however long a thread took to read the body.
    """

    def __init__(self, town: Town, stream: bool, at_work: bool = False, **changes: Any) -> None:
        body = {"model": "tiny", **FORMS["/v1/completions"], "max_tokens": 6, "stream": stream, **changes}
        self._town, self._body, self._sent = town, json.dumps(body).encode(), False
        self.turns, self._at_work = 0, at_work

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._wait(self.turns)
        return {"type": "http.disconnect"}

    async def _wait(self, turns: int) -> None:
        if self._at_work:
            await self._town.engine.began.wait()
        for _ in range(turns):
            await asyncio.sleep(0)

    async def _send(self, message: Any) -> None:
        await asyncio.sleep(0)

    async def leave(self, turns: int, torn: bool) -> None:
        self.turns = 1 << 30 if torn else turns
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": "POST", "scheme": "http", "path": "/v1/completions", "raw_path": b"/v1/completions",
            "query_string": b"", "root_path": "", "client": ("test", 1), "server": ("test", 80),
            "headers": [(b"authorization", f"Bearer {self._town.mallory}".encode())],
        }  # fmt: skip
        self._town.engine.began.clear()
        serving = asyncio.create_task(self._town.app(scope, self._receive, self._send))
        if torn:
            await self._wait(turns)
            serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.mark.parametrize("torn", [False, True])
async def test_whoever_leaves_at_any_turn_pays_for_what_was_made_and_holds_nothing(town: Town, torn: bool) -> None:
    town.engine.tpot_s = 0.0005
    points = [*range(24), *range(24, 400, 16)]
    for stream in (False, True):
        for at_work in (False, True):
            for turns in points:
                await Leaver(town, stream, at_work, n=2, temperature=1).leave(turns, torn)
    assert set((await town.sizes()).values()) == {0}
    found = await town.ledger_rows()
    assert {"cancelled"} <= {row["outcome"] for row in found} <= {"cancelled", "done"}
    counted = await town.receipts.counted([f"{row['request_id']}-0" for row in found])
    assert len(counted) >= 2 * len(points)  # all that left when they were at work
    for row in found:
        made = counted.get(f"{row['request_id']}-0")
        assert row["output_tokens"] == (made.usage.completion_tokens if made else 0)
        if row["output_tokens"]:
            assert row["cost"] == row["prompt_tokens"] + 2 * row["output_tokens"] > 0
    spent = sum(row["prompt_tokens"] + row["output_tokens"] for row in found)
    assert {book.account.day_tokens for book in town.store._books.values()} == {spent}


async def test_a_storm_of_leavers_over_real_connections_leaves_nothing_behind(
    town: Town, capfd: pytest.CaptureFixture[str]
) -> None:
    town.engine.ttft_s, town.engine.tpot_s = 0.002, 0.002
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 300, "stream": True, "n": 2, "temperature": 1})
    headers = [("Authorization", f"Bearer {town.mallory}"), ("Content-Length", str(len(body)))]
    sent = head("/v1/completions", headers, "POST") + body.encode()

    async def leave(port: int, after_s: float, whole: bool) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent if whole else sent[:-5])
        await asyncio.sleep(after_s)
        writer.transport.abort()
        reader.feed_eof()

    async with town.listening() as port:
        for wave in range(4):
            await asyncio.gather(*(leave(port, i * wave / 1000, whole=i % 7 > 0) for i in range(40)))
        async with asyncio.timeout(20):
            while set((sizes := await town.sizes()).values()) != {0}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert set(sizes.values()) == {0}
    found = await town.ledger_rows()
    assert found
    # On a slow machine the queue may tell that what waits already would wait too long.
    assert {(row["outcome"], row["code"]) for row in found} - {("refused", "queue_full")} == {("cancelled", "")}
    assert len(found) + town.ledger.counters().counted_refusals == len(town.records)
    assert len(town.records) > 80  # those that left before their head was read are nobody's
    assert "Traceback" not in "".join(capfd.readouterr())
    assert (await town.ask(town.alice)).status_code == 200


async def test_a_storm_of_failures_and_refusals_leaves_nothing_behind(words_folder: Path, tmp_path: Path) -> None:
    few = {"limits": Limits(concurrent_requests=2, tokens_per_minute=10**6, tokens_per_day=3000)}
    async with town_with(words_folder, tmp_path, mallory=few) as town:
        for fail_after in (None, 0, 1, 3, None):
            town.engine.fail_after, town.engine.tpot_s = fail_after, 0.001
            await asyncio.gather(*(town.ask(town.mallory, stream=i % 2 == 0) for i in range(20)))
            town.engine.alive = not town.engine.alive
        town.engine.alive = True
        await asyncio.gather(*(town.ask(town.mallory, prompt=["x"] * 32) for i in range(4)))
        assert set((await town.sizes()).values()) == {0}
        found = await town.ledger_rows()
        assert {row["outcome"] for row in found} >= {"done", "refused", "lost", "failed"}
        assert sum(row["prompt_tokens"] + row["output_tokens"] for row in found if row["outcome"] != "refused") <= 3000


@pytest.mark.parametrize(
    "changes",
    [{"n": 8, "temperature": 1, "max_tokens": 20}, {"prompt": ["x"] * 20, "max_tokens": 10}, {"max_tokens": 450},
     {"prompt": list(range(300, 320)), "echo": True, "logprobs": 5, "max_tokens": 100, "n": 2, "temperature": 1},
     {"stop": [str(i) * 200 for i in range(16)], "max_tokens": 300}, {"max_tokens": None, "prompt": "x" * 100}],
)  # fmt: skip
async def test_no_shape_of_a_request_gets_more_than_the_day_has(
    words_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    async with town_with(words_folder, tmp_path, mallory={"limits": Limits(tokens_per_day=400)}) as town:
        for _ in range(20):  # short answers: little is held for the next one
            await town.ask(town.mallory, max_tokens=1)
        await asyncio.gather(*(town.ask(town.mallory, **changes) for _ in range(30)))
        found = [row for row in await town.ledger_rows() if row["outcome"] != "refused"]
        assert 40 <= sum(row["prompt_tokens"] + row["output_tokens"] for row in found) <= 400
        assert set((await town.sizes()).values()) == {0}


async def test_scoring_a_prompt_without_an_answer_is_not_free(town: Town) -> None:
    ids = list(range(300, 340))
    for _ in range(2):
        await town.ask(town.mallory, prompt=ids, echo=True, logprobs=5, max_tokens=0)
    assert [(row["prompt_tokens"], row["cost"]) for row in await town.ledger_rows()] == [(40, 40)] * 2


async def test_choices_are_counted_over_all_prompts_of_a_request(words_folder: Path, tmp_path: Path) -> None:
    async with town_with(words_folder, tmp_path, mallory={"ceilings": Ceilings(choices=4)}) as town:
        for fits in (
            {"prompt": ["x"] * 4},
            {"prompt": ["x"] * 2, "n": 2, "temperature": 1},
            {"n": 4, "temperature": 1},
        ):
            assert (await town.ask(town.mallory, **fits)).status_code == 200
        beyond: list[tuple[str, dict[str, Any]]] = [
            ("prompt", {"prompt": ["x"] * 5}), ("n", {"n": 5}), ("prompt", {"prompt": ["x"] * 3, "n": 2}),
            ("prompt", {"prompt": ["x"] * 5, "suffix": "y"}),
        ]  # fmt: skip
        for field, changes in beyond:
            refused = await town.ask(town.mallory, **{"temperature": 1, **changes})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


async def test_a_ceiling_of_nothing_lets_nothing_be_made(words_folder: Path, tmp_path: Path) -> None:
    async with town_with(words_folder, tmp_path, mallory={"ceilings": Ceilings(output_tokens=0)}) as town:
        async with asyncio.timeout(10):
            for most, options in ((None, None), (1, None), (None, {"num_predict": -1}), (None, {"num_predict": 9})):
                refused = await town.ask(town.mallory, max_tokens=most, options=options)
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
            assert (await town.ask(town.mallory, "/v1/chat/completions", max_tokens=None)).status_code == 400
        assert (await town.ask(town.mallory, echo=True, max_tokens=0)).status_code == 200


async def test_whoever_is_suspended_in_the_middle_ends_in_peace_and_begins_nothing_more(town: Town) -> None:
    town.engine.tpot_s = 0.005
    running = asyncio.create_task(town.ask(town.mallory, max_tokens=60, stream=True))
    await town.engine.began.wait()
    _, tenants, known = town.rows
    town.tenants.apply(Changes(1, False, (), (replace(tenants[1], suspended=True),), ()))
    refused = await town.ask(town.mallory)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tenant_suspended")
    assert (await town.get("/v1/usage", town.mallory)).status_code == 403
    assert (await town.get("/v1/models", town.mallory)).status_code == 403
    assert (await town.ask(town.alice)).status_code == 200
    assert (await running).text.endswith("data: [DONE]\n\n")
    town.tenants.apply(Changes(2, False, (), (), (replace(known[1], removed=True),)))
    assert (await town.ask(town.mallory)).status_code == 401
    assert set((await town.sizes()).values()) == {0}
    assert [row["output_tokens"] for row in await town.ledger_rows() if row["tenant_id"] == "mallory"] == [60]


async def test_a_flood_of_unknown_keys_grows_nothing(town: Town) -> None:
    async def flood(times: int) -> None:
        for i in range(times):
            key = f"sk-{i:012x}_{i:064x}"
            headers = {"Authorization": f"Bearer {key}", "X-Request-Id": f"flood-{i}"}
            assert (await town.client.post("/v1/completions", json={}, headers=headers)).status_code == 401

    await flood(100)
    before = len(town.tenants._keys), len(town.store), len(town.ledger._refusals._buckets)
    await flood(1900)
    assert (len(town.tenants._keys), len(town.store), len(town.ledger._refusals._buckets)) == before == (2, 0, 1)
    assert len(town.ledger._refusals._counts) <= 2  # one for each minute
    assert len(await town.ledger_rows()) < 1000  # ten a second have a row of their own
    assert town.ledger.counters().counted_refusals > 1000
    assert set((await town.sizes()).values()) == {0}


async def test_a_flood_of_one_does_not_keep_another_out(words_folder: Path, tmp_path: Path) -> None:
    few = {**COUNTED, "limits": replace(COUNTED["limits"], requests_per_minute=5)}
    async with town_with(words_folder, tmp_path, mallory=few) as town:
        answers = await asyncio.gather(*(town.ask(town.mallory) for _ in range(200)), town.ask(town.alice))
        assert answers[-1].status_code == 200
        assert [a.status_code for a in answers[:-1]].count(200) == 5
        assert "x-ratelimit-remaining-requests" not in answers[-1].headers
