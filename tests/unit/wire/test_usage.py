"""GET /v1/usage through the public door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.support.books import Books, Open


@asynccontextmanager
async def asked(books: Books) -> AsyncIterator[httpx.AsyncClient]:
    for _ in range(3):
        await books.door.post("/v1/completions")
    await books.door.post("/v1/completions", model="tiny", n=99)
    await books.rows()
    yield books.door.client


async def test_a_tenant_sees_its_own_usage_by_day_model_and_key(opened: Open) -> None:
    books = opened()
    async with asked(books) as client:
        (group,) = [g for g in (await client.get("/v1/usage")).json()["data"] if g["model"]]
        assert (group["requests"], group["output_tokens"]) == ({"done": 3}, 24)
        assert "cost" not in group  # a number says its unit
        assert group["cost_millionths"] == group["prompt_tokens"] + 2 * 24
        whole = (await client.get("/v1/usage", params={"by": "day", "limit": 1})).json()
        assert (whole["currency"], whole["has_more"]) == ("USD", False)
        assert whole["data"][0]["requests"] == {"done": 3, "refused": 1}
        pages, cursor = list[Any](), None
        while cursor is not None or not pages:
            query: dict[str, str] = {"by": "model", "limit": "1"} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/v1/usage", params=query)).json()
            pages, cursor = pages + page["data"], page["next_cursor"]
        assert [g["model"] for g in pages] == ["", "tiny"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"since": "yesterday"}, "since"), ({"since": "2026-01-02", "until": "2026-01-01"}, "since"),
        ({"since": "1990-01-01"}, "since"), ({"by": "tenant"}, "by"), ({"limit": "0"}, "limit"),
        ({"cursor": "x"}, "cursor"), ({"tenant": "other"}, "tenant"),
    ],
)  # fmt: skip
async def test_a_wrong_question_about_usage_names_its_field(opened: Open, query: dict[str, str], field: str) -> None:
    answer = await opened().door.client.get("/v1/usage", params=query)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
