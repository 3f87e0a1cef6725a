"""What the ledger tells."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.ledger.entry import NAMES, Entry
from serve.ledger.journal import Line
from serve.ledger.rejected import Rejected
from serve.ledger.shipping import ship
from serve.ledger.tables import write_entries
from serve.ledger.usage import By, Usage, counted_refusals, csv_lines, json_lines, prune, rows, usage

DAY = 86_400.0
FIRST = 20_000 * DAY  # 2024-10-04


def write(database: sa.Engine, *entries: Entry) -> None:
    with database.begin() as connection:
        write_entries(connection, list(entries))


def entry(number: int, day: int = 0, **what: object) -> Entry:
    given = {
        "outcome": "done", "tenant_id": "acme", "key_id": "k1", "model": "m", "prompt_tokens": 10, "output_tokens": 5,
        "cached_tokens": 4, "computed_prompt_tokens": 6, "cost": 7, "closed_s": FIRST + day * DAY + 60, **what,
    }  # fmt: skip
    return Entry(f"r{number:06}", FIRST + day * DAY + number / 1000, **given)  # type: ignore[arg-type]


@pytest.fixture
def filled(database: sa.Engine, tmp_path: Path) -> sa.Engine:
    write(
        database, entry(1), entry(2, outcome="cancelled"), entry(3, key_id="k2"), entry(4, day=1, model="n"),
        entry(5, day=1, closed_s=None, outcome="open"), entry(6, tenant_id="other"), entry(7, day=2),
        entry(8, outcome="refused", model="", prompt_tokens=0, output_tokens=0, cost=0, code="rate"),
    )  # fmt: skip
    count = {"router": "a", "minute_s": int(FIRST), "key_id": "k1", "code": "rate", "day": 20_000,
             "organisation_id": "", "tenant_id": "acme", "requests": 90}  # fmt: skip
    ship(
        database, [Line("n", count), Line("n", count | {"router": "b", "requests": 9})], Rejected(tmp_path / "rejected")
    )
    return database


def test_usage_is_summed_by_day_model_and_key(filled: sa.Engine) -> None:
    page = usage(filled, "acme", FIRST, FIRST + 2 * DAY)
    assert page.cursor is None
    assert page.rows == [
        Usage("2024-10-04", "", "k1", {"refused": 100}, 0, 6, 4, 0, 0),
        Usage("2024-10-04", "m", "k1", {"done": 1, "cancelled": 1}, 20, 12, 8, 10, 14),
        Usage("2024-10-04", "m", "k2", {"done": 1}, 10, 6, 4, 5, 7),
        Usage("2024-10-05", "m", "k1", {"open": 1}, 10, 6, 4, 5, 7),
        Usage("2024-10-05", "n", "k1", {"done": 1}, 10, 6, 4, 5, 7),
    ]


@pytest.mark.parametrize("by", [("day", "model", "key"), ("day",), ("key", "model"), ("model",), ()])
def test_pages_join_to_the_whole_and_every_grouping_has_the_same_total(filled: sa.Engine, by: tuple[By, ...]) -> None:
    whole = usage(filled, "acme", FIRST, FIRST + 9 * DAY, by).rows
    found, cursor = list[Usage](), None
    while True:
        page = usage(filled, "acme", FIRST, FIRST + 9 * DAY, by, cursor, limit=1)
        found += page.rows
        if (cursor := page.cursor) is None:
            break
    assert found == whole
    assert sum(sum(group.requests.values()) for group in whole) == 106
    assert sum(group.output_tokens for group in whole) == 30


def test_a_tenant_sees_its_own_alone_and_the_operator_everybody(filled: sa.Engine) -> None:
    assert usage(filled, "other", 0, 1e12, ()).rows[0].requests == {"done": 1}
    assert sum(usage(filled, None, 0, 1e12, ()).rows[0].requests.values()) == 107
    assert usage(filled, "nobody", 0, 1e12).rows == []


@pytest.mark.parametrize("cursor", ["", "x", "bnVsbA==", "WzFd", "WyJhIiwgImIiLCAiYyJd", "€"])
def test_a_cursor_of_somebody_else_is_refused(filled: sa.Engine, cursor: str) -> None:
    with pytest.raises(ValueError, match="this cursor was not given"):
        usage(filled, "acme", 0, 1e12, cursor=cursor)


def test_exports_hold_every_row_in_order(database: sa.Engine) -> None:
    write(database, *(entry(i, model='a,"b' if i % 2 else "m", ttft_s=0.1) for i in range(2500, 0, -1)))
    lines = [json.loads(line) for line in json_lines(rows(database, 0, 1e12))]
    assert [line["request_id"] for line in lines] == [f"r{i:06}" for i in range(1, 2501)]
    assert tuple(lines[0]) == NAMES
    text = "".join(csv_lines(rows(database, 0, 1e12, "acme")))
    table = list(csv.DictReader(io.StringIO(text)))
    assert [row["request_id"] for row in table] == [line["request_id"] for line in lines]
    assert (table[0]["model"], table[0]["ttft_s"], table[0]["queue_s"]) == ('a,"b', "0.1", "")
    assert list(csv_lines(rows(database, 0, 1))) == [",".join(NAMES) + "\n"]
    # A page may end between rows of the very same moment.
    write(database, *(Entry(f"same{i:05}", FIRST * 2, FIRST * 2, "done") for i in range(2100)))
    assert len(list(rows(database, FIRST * 2, 1e12))) == 2100


def test_an_export_needs_no_more_memory_for_more_rows(database: sa.Engine) -> None:
    def peak() -> int:
        tracemalloc.start()
        for _ in json_lines(rows(database, 0, 1e12)):
            pass
        _, top = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return top

    write(database, *(entry(i) for i in range(3000)))
    peak()  # statements are compiled and kept
    few = peak()
    write(database, *(entry(i) for i in range(3000, 12_000)))
    assert peak() < 1.5 * few


def test_counted_refusals_are_exported_for_all_routers_together(filled: sa.Engine) -> None:
    assert list(counted_refusals(filled, FIRST, FIRST + DAY, "acme")) == [
        {"minute_s": int(FIRST), "organisation_id": "", "tenant_id": "acme", "key_id": "k1", "code": "rate",
         "requests": 99}
    ]  # fmt: skip


def test_pruning_forgets_what_is_closed_and_old(filled: sa.Engine) -> None:
    assert prune(filled, FIRST + 2 * DAY) == 8  # rows before, without the open one; two counters
    left = [row["request_id"] for row in rows(filled, 0, 1e12)]
    assert left == ["r000005", "r000007"]
    assert list(counted_refusals(filled, 0, 1e12)) == []
    write(filled, *(entry(i) for i in range(10, 2310)))
    assert prune(filled, FIRST + 2 * DAY) == 2300


def test_an_operator_sees_it_by_tenant_and_organisation(filled: sa.Engine) -> None:
    write(filled, entry(9, tenant_id="web", organisation_id="big"), entry(10, tenant_id="web2", organisation_id="big"))
    found = usage(filled, None, FIRST, FIRST + 9 * DAY, ("organisation", "tenant")).rows
    told = [(u.organisation_id, u.tenant_id, sum(u.requests.values()), u.day, u.key_id) for u in found]
    assert told == [("", "acme", 106, None, None), ("", "other", 1, None, None), ("big", "web", 1, None, None),
                    ("big", "web2", 1, None, None)]  # fmt: skip
    (whole,) = usage(filled, None, 0, 1e12, (), organisation_id="big").rows
    assert (whole.requests, whole.cost, whole.tenant_id) == ({"done": 2}, 14, None)
    (one,) = usage(filled, "web", 0, 1e12, ("tenant",), organisation_id="big").rows
    assert (one.tenant_id, one.cost) == ("web", 7)
    assert usage(filled, "acme", 0, 1e12, ("tenant",), organisation_id="big").rows == []
