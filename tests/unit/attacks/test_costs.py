"""Whatever a client sends costs linear time and bounded memory, and never holds the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.admin import build_admin
from serve.fim import markers_of
from serve.ledger.usage import usage
from serve.services import Database
from serve.tenants.development import make_store
from serve.words import Secret
from tests.support.door import SETTINGS, Door
from tests.support.hostile import ADMIN, HOSTILE, QUERIES, cost
from tests.support.ticking import Ticker
from tests.support.town import Town, head, raw

ONE_PER_STEP = {"lists of nothing", "unknown fields of a message", "prompts that are none", "biases", "ids",
                "one letter", "turns of a template", "fill-in-the-middle markers", "references"}  # fmt: skip
# More than five times the worst of docs/costs.md, on two cores that other tests use too.
STOOD_S, GROWN_MIB, TOOK_S = 0.5, 700, 30


@pytest.mark.parametrize("name", [n if n in ONE_PER_STEP else pytest.param(n, marks=pytest.mark.full) for n in HOSTILE])
async def test_a_hostile_body_is_answered_and_others_do_not_notice(words_folder: Path, name: str) -> None:
    door = Door(words_folder)
    async with door.client:
        await door.post("/v1/completions")  # the first one of a process imports, and reads what judges answers
        told = await cost(door, HOSTILE[name])
        assert told.status in (200, 400), told
        assert told.status == 200 or told.param is not None or HOSTILE[name].step == "JSON", told
        assert told.stood_s < STOOD_S, told
        assert told.grown_mib < GROWN_MIB, told
        assert told.took_s < TOOK_S, told
        assert (await door.post("/v1/completions")).status_code == 200


def test_of_a_prompt_that_reads_in_many_ways_only_as_many_are_looked_at_as_tell_so() -> None:
    markers = markers_of(("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"), "<|endoftext|>")
    assert markers is not None
    many = "<fim_prefix>a" + "<fim_suffix>b" * 4000 + "<fim_middle>"
    assert len(list(markers._readings(many))) == 2
    assert markers.taken_apart(many) is None
    assert markers.taken_apart("<fim_prefix>a<fim_suffix>b<fim_middle>") is not None


@pytest.mark.parametrize("name", QUERIES)
async def test_a_hostile_query_holds_nobody_up(town: Town, name: str) -> None:
    async with town.listening() as port, Ticker() as ticker:
        answer = await raw(port, head(QUERIES[name], [("Authorization", f"Bearer {town.mallory}")]))
    assert answer.status in (400, 404)
    assert ticker.stood_s < STOOD_S


@pytest.mark.parametrize("name", ADMIN)
async def test_the_admin_api_refuses_a_hostile_body_without_standing_still(tmp_path: Path, name: str) -> None:
    store, token = make_store(Database(), tmp_path), Secret("admin-" + "t" * 64)
    transport = httpx.ASGITransport(build_admin(store, token, None, "EUR"))
    headers = {"Authorization": f"Bearer {token.reveal()}"}
    client = httpx.AsyncClient(transport=transport, base_url="http://admin/admin/v1", headers=headers)
    async with client, Ticker() as ticker:
        answer = await client.post(ADMIN[name].path, content=ADMIN[name].body())
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] or name == "depth"
    assert ticker.stood_s < STOOD_S
    store.close()


async def test_bodies_that_are_refused_count_against_a_limit_of_their_own(words_folder: Path) -> None:
    door = Door(words_folder, {**SETTINGS, "caps": {"refused_per_minute": 10}})
    async with door.client:

        async def refused(n: int) -> list[tuple[int, Any]]:
            answers = [await door.post("/v1/completions", temperature=-1) for _ in range(n)]
            return [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]

        assert await refused(10) == [(400, "invalid_value")] * 10
        assert set(await refused(3)) == {(400, "invalid_value"), (429, "rate_limit_exceeded")}
        limited = await door.post("/v1/completions")
        assert limited.status_code == 429
        assert int(limited.headers["retry-after"]) >= 1
        assert "refused within a minute" in limited.json()["error"]["message"]
        assert (await door.client.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("body", [{"prompt": "x" * 100_000}, {"prompt": "word " * 4000}])
async def test_a_large_refused_body_counts_more_and_so_does_one_that_is_refused_after_it_was_tokenised(
    words_folder: Path, body: dict[str, Any]
) -> None:
    door = Door(words_folder, {**SETTINGS, "caps": {"refused_per_minute": 10}})
    async with door.client:
        statuses = [(await door.post("/v1/completions", **body)).status_code for _ in range(14)]
    large = len(json.dumps(body)) > 65_536
    assert (statuses.count(400), statuses.count(429)) == ((6, 8) if large else (11, 3))


async def test_a_flood_of_usage_queries_is_bounded_for_each_tenant_and_holds_up_no_other(town: Town) -> None:
    await asyncio.gather(*(town.ask(town.alice, max_tokens=1) for _ in range(3)))
    await town.ledger_rows()
    answers = await asyncio.gather(*(town.get("/v1/usage", town.mallory) for _ in range(60)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 4
    assert (await town.get("/v1/usage", town.alice)).status_code == 200
    assert (await town.get("/v1/usage", town.mallory)).status_code == 200


async def test_an_admins_reports_hold_up_no_act(tmp_path: Path, town: Town) -> None:
    """A key is revoked at once, however many reports are asked for."""
    store, token, began = make_store(Database(), tmp_path), Secret("admin-" + "t" * 64), asyncio.Event()
    loop, ended = asyncio.get_running_loop(), threading.Event()

    def slow(*_: Any, **__: Any) -> Any:
        loop.call_soon_threadsafe(began.set)
        ended.wait(60)
        return usage(town.database, None, 0.0, 1.0)

    transport = httpx.ASGITransport(build_admin(store, token, slow, "EUR"))
    headers = {"Authorization": f"Bearer {token.reveal()}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://admin/admin/v1", headers=headers) as client:
        reports = [asyncio.create_task(client.get("/usage")) for _ in range(100)]
        await began.wait()
        made = await asyncio.wait_for(client.post("/organisations", json={"id": "acme"}), 5)
        assert made.status_code == 201
        ended.set()
        assert {answer.status_code for answer in await asyncio.gather(*reports)} == {200, 429}
    store.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_many_logprobs_is_written_without_standing_still(words_folder: Path, stream: bool) -> None:
    longer = {**SETTINGS["models"][0], "context_tokens": 1024}  # of each prompt, whose scores the fake makes at once
    door = Door(words_folder, {**SETTINGS, "models": [longer]})
    asked = {"prompt": [[5 + i % 500 for i in range(1000)]] * 32, "echo": True, "logprobs": 5, "max_tokens": 0}
    async with httpx.AsyncClient(transport=door.client._transport, base_url="http://test") as client:
        client.headers = door.client.headers
        async with Ticker() as ticker:  # without the judge of shapes, who reads on the same loop
            told = await client.post("/v1/completions", json={"model": "tiny", **asked, "stream": stream})
        more = {**asked, "n": 8, "temperature": 1, "max_tokens": 24, "logprobs": 5}
        few = Door(words_folder, {**SETTINGS, "models": [longer], "caps": {"logprob_entries": 10**6}})
        refused = await few.post("/v1/completions", **more)
        await few.client.aclose()
    assert told.text.count('"top_logprobs"') == 32
    assert ticker.stood_s < STOOD_S
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
