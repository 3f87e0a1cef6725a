"""A router that is stopped: what runs may end, then it is told; nothing new is let in, and the books are exact."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from tests.support.books import Books, Open
from tests.support.door import FORMS, chunks, is_openai_error

PATH = "/v1/completions"


async def begun(books: Books, **changes: Any) -> asyncio.Task[httpx.Response]:
    """An answer of 50 tokens and half a second that has made some."""
    books.door.engine.tpot_s = 0.01
    answer = asyncio.create_task(books.door.post(PATH, **{"max_tokens": 50, "stream": True, **changes}))
    async with asyncio.timeout(5):
        while sum(books.door.counts) < 3:  # noqa: ASYNC110 - the engine tells nobody
            await asyncio.sleep(0.001)
    return answer


async def test_nothing_new_is_let_in_and_probes_see_it(opened: Open) -> None:
    books = opened()
    await books.door.stop(0)
    for path in FORMS:
        refused = await books.door.post(path)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["code"] == "server_stopping"
        assert is_openai_error(refused)
    assert [record.outcome for record in books.door.records] == ["refused"] * len(FORMS)
    assert (await books.door.client.get("/health")).status_code == 503
    assert (await books.door.client.get("/health/live")).status_code == 200
    assert books.door.engine.jobs == []


async def test_an_answer_that_ends_in_time_is_whole(opened: Open) -> None:
    books = opened()
    answer = await begun(books)
    began = time.monotonic()
    assert await books.door.stop(30) == 0
    assert time.monotonic() - began < 10  # it waits no longer than the answer
    assert chunks(await answer)[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("changes", [{}, {"n": 3}, {"prompt": ["def f(", "x = "]}])
async def test_a_cut_stream_ends_with_an_error_and_the_ledger_is_exact(opened: Open, changes: dict[str, Any]) -> None:
    books = opened()
    answer = await begun(books, **changes)
    assert await books.door.stop(0.05) == 1
    events = [event for event in (await answer).text.split("\n\n") if event]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "server_stopped"
    assert "[DONE]" not in events[-1]
    # As `starserve ledger check` sees it, right after the stop: nothing open, and what was made is in the ledger.
    (row,) = await books.rows()
    assert (row["outcome"], row["code"]) == ("failed", "server_stopped")
    assert row["closed_s"] is not None
    assert row["output_tokens"] == sum(books.door.counts) > 0
    assert books.door.engine.running == set()


async def test_a_cut_unary_answer_is_a_503(opened: Open) -> None:
    books = opened()
    answer = await begun(books, stream=False)
    assert await books.door.stop(0.05) == 1
    refused = await answer
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert is_openai_error(refused)


async def test_what_waits_for_its_turn_is_refused_by_status(opened: Open) -> None:
    books = opened(places=1)
    first = await begun(books)
    waiting = asyncio.create_task(books.door.post(PATH, stream=True))
    async with asyncio.timeout(5):
        while not books.door.turns.waiting:  # noqa: ASYNC110 - the queue tells nobody
            await asyncio.sleep(0.001)
    assert await books.door.stop(0.02) == 2
    refused = await waiting
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
    await first
    assert all(row["closed_s"] for row in await books.rows())


async def test_a_client_that_leaves_meanwhile_is_not_answered(opened: Open) -> None:
    books = opened()
    answer = await begun(books)
    stopping = asyncio.create_task(books.door.stop(5))
    await asyncio.sleep(0)
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    assert await stopping == 0
    (row,) = await books.rows()
    assert row["outcome"] == "cancelled"
    assert row["output_tokens"] == sum(books.door.counts)
