"""What the ledger costs: a request's two writes, shipping, memory, a flood of refusals; empty, and with many rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psutil
import sqlalchemy as sa

from serve.database import migrate, open_database
from serve.ledger.entry import Entry
from serve.ledger.ledger import Ledger
from serve.ledger.tables import ledger, refusals, write_entries
from serve.ledger.usage import json_lines, rows, usage
from serve.record import Record

PER_S = 500  # requests, while one's cost is measured
FLOOD_PER_S, FLOOD_S = 2000, 5
_TOGETHER = 10_000  # rows of the fill that are written together


@dataclass(frozen=True, slots=True)
class Measured:
    """One database at one size of its table."""

    database: str
    table_rows: int
    request_p50_us: float  # opened + one mark + closed, on the thread of the request
    request_p99_us: float
    shipped_rows_per_s: float
    usage_s: float  # of one tenant of ten, by day, model and key
    export_rows_per_s: float
    memory_mib: float  # resident, of the whole process, at its end


@dataclass(frozen=True, slots=True)
class Flooded:
    """Refusals of one key, so many per second for so long."""

    refusals: int
    seconds: float
    p99_us: float
    rows: int
    counter_rows: int
    counted: int  # by the counters; with the rows: all


def measure(
    url: str, sizes: list[int], requests: int, folder: Path, say: Callable[[str], None]
) -> tuple[list[Measured], Flooded]:
    """`url`: a database that the measurement may fill; it must hold no ledger. `sizes`: of its table, growing."""
    database = open_database(url)
    migrate(database)
    if _count(database, ledger):
        raise ValueError("this database holds a ledger already; name an empty one")
    one = Ledger(folder, "bench", database, say)
    one.start()
    found, there = [], 0
    for size in sizes:
        say(f"{database.dialect.name}: filling the table up to {size} rows")
        there += _fill(database, there, size)
        found.append(_measure(one, database, there, requests))
        there += requests
    flooded = _flood(one, database)
    one.stop(60)
    database.dispose()
    return found, flooded


def _measure(one: Ledger, database: sa.Engine, there: int, requests: int) -> Measured:
    took = [_life(one, there + i, i / PER_S, began) for began in [time.perf_counter()] for i in range(requests // 4)]
    before = time.perf_counter()
    for i in range(requests // 4, requests):
        _life(one, there + i)
    while one.counters().unshipped_bytes:
        time.sleep(0.01)
    if not one.flush(600):
        raise RuntimeError("the ledger was not shipped within 600 s")
    shipping_s = time.perf_counter() - before
    took.sort()
    before = time.perf_counter()
    usage(database, "tenant-3", 0, 1e12)
    usage_s = time.perf_counter() - before
    before = time.perf_counter()
    exported = sum(1 for _ in islice(json_lines(rows(database, 0, 1e12)), 100_000))
    export_s = time.perf_counter() - before
    return Measured(
        database.dialect.name, there, took[len(took) // 2], took[len(took) * 99 // 100], requests * 3 // 4 / shipping_s,
        usage_s, exported / export_s, psutil.Process().memory_info().rss / (1 << 20),
    )  # fmt: skip


def _life(one: Ledger, i: int, at_s: float = 0.0, began: float = 0.0) -> float:
    """The ledger's part of one request's life, µs. `at_s` after `began`, or at once."""
    if (early := began + at_s - time.perf_counter()) > 0:
        time.sleep(early)
    record, before = _record(i), time.perf_counter()
    one.opened(record)
    record.output_tokens = 1
    one.progress(record)
    record.outcome, record.output_tokens = "done", 100
    one.closed(record)
    return (time.perf_counter() - before) * 1e6


def _flood(one: Ledger, database: sa.Engine) -> Flooded:
    before, took, began = _count(database, ledger), [], time.perf_counter()
    total = FLOOD_PER_S * FLOOD_S
    for i in range(total):
        if (early := began + i / FLOOD_PER_S - time.perf_counter()) > 0:
            time.sleep(early)
        record = _record(10**9 + i)
        record.outcome, record.code, record.key_id = "refused", "rate_limit_exceeded", "flooding"
        at = time.perf_counter()
        one.refused(record)
        took.append((time.perf_counter() - at) * 1e6)
    seconds = time.perf_counter() - began
    one.flush(60)
    with database.connect() as connection:
        counted = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(refusals.c.requests), 0))).scalar_one()
    took.sort()
    return Flooded(
        total, seconds, took[total * 99 // 100], _count(database, ledger) - before, _count(database, refusals),
        int(counted),
    )  # fmt: skip


def _fill(database: sa.Engine, there: int, size: int) -> int:
    """Rows of the past, over 30 days, straight into the table. Returns how many."""
    entries, written = _past(there, size), 0
    while part := list(islice(entries, _TOGETHER)):
        with database.begin() as connection:
            write_entries(connection, part)
        written += len(part)
    return written


def _past(there: int, size: int) -> Iterator[Entry]:
    now_s = time.time()
    for i in range(there, size):
        opened_s = now_s - (size - i) / size * 30 * 86_400
        yield Entry(
            _id(i), opened_s, opened_s + 2, "done", tenant_id=f"tenant-{i % 10}", key_id=f"key-{i % 30}", model="m",
            form="chat", jobs=1, prompt_tokens=200, computed_prompt_tokens=100, cached_tokens=100, output_tokens=100,
            cost=42, queue_s=0.01, ttft_s=0.1, duration_s=2.0,
        )  # fmt: skip


def _record(i: int) -> Record:
    record = Record(_id(i), "chat", "theirs", f"tenant-{i % 10}", f"key-{i % 30}", "m", True, prompt_tokens=200)
    record.organisation_id, record.jobs, record.template, record.queue_s, record.ttft_s = "o", 1, "alpaca", 0.01, 0.1
    return record


def _id(i: int) -> str:
    """Spread like the random ids of requests: an index cannot profit from their order."""
    return f"chatcmpl-{(i * 0x9E3779B97F4A7C15) & ((1 << 64) - 1):016x}"


def _count(database: sa.Engine, table: sa.Table) -> int:
    with database.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
