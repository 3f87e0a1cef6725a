"""What requests cost, through the public door: limits, the ledger, and that both know what the engine made."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from serve.restoring import Restorer
from serve.words import Ceilings, Level, Limits, Tenant
from tests.support.books import Open
from tests.support.door import chunks


async def test_every_way_to_end_leaves_one_row_with_what_the_engine_made(opened: Open) -> None:
    books = opened()
    door = books.door
    await door.post("/v1/completions")
    await door.post("/v1/chat/completions", n=3, temperature=1)
    await door.post("/v1/completions", prompt=["a", "b"], stream=True)
    await door.post("/v1/completions", max_tokens=-1)
    await books.leave(after=5)
    door.engine.fail_after, door.engine.tpot_s = 3, 0.0
    await door.post("/v1/completions", stream=True)
    door.engine.alive = False
    await door.post("/v1/completions")
    found = await books.rows()
    assert [row["outcome"] for row in found] == ["done", "done", "done", "refused", "cancelled", "lost", "failed"]
    made = [(8, 1), (24, 1), (16, 2), (0, 0)]
    assert [(row["output_tokens"], row["jobs"]) for row in found[:4]] == made
    assert found[4]["output_tokens"] >= 5
    assert (found[5]["output_tokens"], found[6]["output_tokens"]) == (3, 0)
    assert found[6]["cost"] == found[6]["prompt_tokens"] == 0  # nobody read it
    of_engine = await door.receipts.counted([f"{row['request_id']}-{i}" for row in found for i in range(2)])
    assert sum(c.usage.completion_tokens for c in of_engine.values()) == sum(row["output_tokens"] for row in found)
    assert {row["tenant_id"] for row in found} == {"development"}
    assert {row["template"] for row in found if row["jobs"]} == {"raw", "alpaca"}


async def test_a_stream_that_was_left_pays_for_exactly_what_was_made(opened: Open) -> None:
    books = opened(tenant={"limits": Limits(tokens_per_day=10_000)})
    await books.leave(after=7)
    (row,) = await books.rows()
    (counted,) = (await books.door.receipts.counted([f"{row['request_id']}-0"])).values()
    assert counted.finished
    assert row["output_tokens"] == counted.usage.completion_tokens
    assert row["cost"] == row["prompt_tokens"] + 2 * row["output_tokens"]
    answer = await books.door.post("/v1/completions", max_tokens=1)
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert left == 10_000 - row["prompt_tokens"] - row["output_tokens"] - row["prompt_tokens"] - 1


async def test_whoever_leaves_before_the_first_token_pays_for_the_prompt_only_if_it_was_in_work(opened: Open) -> None:
    books = opened(places=1)
    door, turns = books.door, books.door.turns
    door.engine.ttft_s = 5
    asked = [asyncio.create_task(door.post("/v1/completions", prompt=[300] * 30)) for _ in range(2)]
    async with asyncio.timeout(5):
        while not (turns.at_work and turns.waiting):  # noqa: ASYNC110 - the queue tells nobody
            await asyncio.sleep(0.001)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    found = await books.rows()
    assert {row["outcome"] for row in found} == {"cancelled"}
    assert sorted((row["prompt_tokens"], row["output_tokens"], row["cost"]) for row in found) == [
        (0, 0, 0),
        (30, 0, 30),
    ]


async def test_cached_prompt_tokens_cost_what_the_price_says(opened: Open) -> None:
    books = opened()
    books.door.engine.caching = True
    prompt = list(range(300, 340))
    await books.door.post("/v1/completions", prompt=prompt)
    await books.door.post("/v1/completions", prompt=prompt)
    first, second = await books.rows()
    assert (first["cached_tokens"], first["computed_prompt_tokens"], first["cost"]) == (0, 40, 40 + 16)
    assert (second["cached_tokens"], second["computed_prompt_tokens"], second["cost"]) == (32, 8, 8 + 16 + 16)


async def test_fifty_at_once_pass_a_limit_for_one_at_most_once(opened: Open) -> None:
    books = opened(key={"limits": Limits(requests_per_minute=1)})
    answers = await asyncio.gather(*(books.door.post("/v1/completions") for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [429] * 49
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-limit-requests"] == "1"


@pytest.mark.parametrize(
    ("level", "limits", "code", "helps"),
    [
        ("key", Limits(concurrent_requests=0), "concurrency_limit", False),
        ("tenant", Limits(tokens_per_minute=10), "rate_limit_exceeded", False),
        ("organisation", Limits(tokens_per_day=5), "insufficient_quota", False),
        ("tenant", Limits(budget_per_month=3), "insufficient_quota", False),
        ("tenant", Limits(queued_tokens=2), "queue_limit", False),
    ],
)
async def test_a_limit_that_waiting_does_not_help_against_says_so(
    opened: Open, level: str, limits: Limits, code: str, helps: bool
) -> None:
    books = opened(**{level: {"limits": limits}})
    answer = await books.door.post("/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)
    assert (answer.headers.get("x-should-retry") != "false") == helps
    assert not books.door.engine.jobs
    (row,) = await books.rows()
    assert (row["outcome"], row["code"], row["cost"], row["prompt_tokens"]) == ("refused", code, 0, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_used_up_budget_ends_an_answer_cleanly_and_says_why(opened: Open, stream: bool) -> None:
    books = opened(tenant={"limits": Limits(budget_per_month=1000)})
    for _ in range(20):  # short answers: little is held for the next one
        await books.door.post("/v1/completions", max_tokens=4)
    await books.accounts.quiet()
    answer = await books.door.post("/v1/completions", max_tokens=500, stream=stream)
    assert answer.status_code == 200
    last = [c for chunk in chunks(answer) for c in chunk["choices"]][-1] if stream else answer.json()["choices"][0]
    assert (last["finish_reason"], last["stop_reason"]) == ("length", "insufficient_quota")
    found = await books.rows()
    assert 20 * 8 < sum(row["cost"] for row in found) <= 1000
    assert 4 < found[-1]["output_tokens"] < 500
    assert (found[-1]["outcome"], found[-1]["code"]) == ("done", "insufficient_quota")
    assert not books.door.engine.running


@pytest.mark.parametrize("level", ["key", "tenant", "organisation"])
async def test_a_restart_does_not_forget_what_was_used(opened: Open, level: str) -> None:
    limited = {level: {"limits": Limits(tokens_per_day=100, budget_per_month=100)}}
    before = opened(**limited)
    await before.door.post("/v1/completions", prompt=list(range(300, 340)), max_tokens=20)
    used = sum(row["prompt_tokens"] + row["output_tokens"] for row in await before.rows())
    before.close()
    after = opened(**limited)
    assert (await after.door.post("/v1/completions", max_tokens=1)).status_code == 200  # it asks the ledger
    await after.accounts.quiet()
    answer = await after.door.post("/v1/completions", prompt=list(range(300, 340)), max_tokens=20)
    assert used >= 60
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")


async def test_counters_are_restored_also_when_the_database_was_away_at_first(opened: Open) -> None:
    books = opened(tenant={"limits": Limits(tokens_per_day=100)})
    asked = 0

    async def spent(_: Tenant, __: Level) -> tuple[int, int]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError
        return 95, 0

    books.accounts._restorer = Restorer(books.accounts.limits, spent)
    await books.door.post("/v1/completions", max_tokens=1)
    async with asyncio.timeout(5):
        while asked < 2:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    await books.accounts.quiet()
    answer = await books.door.post("/v1/completions")
    assert (asked, answer.status_code, answer.json()["error"]["code"]) == (2, 429, "insufficient_quota")


async def test_what_a_request_may_ask_for_is_bounded_by_its_tenant(opened: Open) -> None:
    books = opened(
        tenant={"ceilings": Ceilings(prompt_tokens=20, output_tokens=10, choices=2), "models": frozenset({"other"})}
    )
    assert (await books.door.post("/v1/completions")).json()["error"]["code"] == "model_not_found"
    assert (await books.door.client.get("/v1/models")).json()["data"] == []
    assert (await books.door.client.get("/v1/models/tiny")).status_code == 404


async def test_a_tenants_ceilings_name_the_field_and_cut_no_more_than_a_default(opened: Open) -> None:
    books = opened(tenant={"ceilings": Ceilings(prompt_tokens=20, output_tokens=10, choices=2)})
    wrong: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": list(range(300, 321))}, "max_tokens": {"max_tokens": 11}, "n": {"n": 3, "temperature": 1},
    }  # fmt: skip
    for field, changes in wrong.items():
        answer = await books.door.post("/v1/completions", **changes)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    body = {"model": "tiny", "prompt": list(range(300, 320))}
    assert (await books.door.client.post("/v1/completions", json=body)).json()["usage"]["completion_tokens"] == 10


async def test_a_key_opens_only_its_scopes(opened: Open) -> None:
    books = opened(key={"scopes": frozenset({"usage"})})
    refused = await books.door.post("/v1/completions")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert (await books.door.client.get("/v1/usage")).status_code == 200


async def test_no_prompt_and_no_key_is_in_the_ledger_or_its_journal(opened: Open, tmp_path: Path) -> None:
    books, canary = opened(), "canary-4711"
    for changes in ({}, {"model": canary}, {"stop": [canary]}, {canary: 1}, {"max_tokens": -1}):
        await books.door.post("/v1/completions", prompt=canary, **changes)
    found = await books.rows()
    assert len(found) == 5
    with books.database.connect() as connection:
        told = str(connection.execute(sa.text("SELECT * FROM ledger WHERE model != :m"), {"m": canary}).all())
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())  # noqa: ASYNC240
    secret = books.door.key.split("_", 1)[1]
    assert canary not in told
    assert secret.encode() not in files
    assert files.count(canary.encode()) <= 4  # the name of a model that is not there, which is not a prompt
