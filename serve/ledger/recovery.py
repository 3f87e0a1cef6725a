"""Rows of dead routers: their journals are shipped, and what they left open is closed with what the engines counted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Engine, select

from serve.ledger.entry import NAMES, Entry
from serve.ledger.journal import forget, locked
from serve.ledger.reading import Reader
from serve.ledger.shipping import ship_all
from serve.ledger.tables import ledger, write_entries
from serve.words import Counted, Usage

AT_ONCE = 200  # rows that are asked about and closed together


UsageOf = Callable[[Sequence[str]], Awaitable[Mapping[str, Counted]]]  # job ids → those that an engine knows
Acknowledge = Callable[[Sequence[str]], Awaitable[None]]  # the engines may forget these jobs
CostOf = Callable[[Entry], int]  # of a row with its last counts; millionths


@dataclass(slots=True)
class Recovered:
    """What one pass did."""

    routers: int = 0  # dead ones whose journal is finished
    lines: int = 0  # shipped from their journals
    torn: int = 0
    rejected: int = 0
    closed: int = 0  # rows, with the engines' own count
    unknown: int = 0  # rows of which no engine knew a job any more: closed with what is known to have been received
    waiting: int = 0  # rows left open, because an engine still works on them


async def recover(
    folder: Path, database: Engine, usage_of: UsageOf, acknowledge: Acknowledge, cost_of: CostOf, now_s: float
) -> Recovered:
    """One pass over the journals of dead routers in `folder`. Any router may call it at any time, several at once.

    Raises SQLAlchemyError while the database is away, and whatever `usage_of` raises: nothing is lost, call again.
    """
    done = Recovered()
    for lock in await asyncio.to_thread(lambda: sorted(folder.glob("*.lock"))):
        if (descriptor := locked(lock)) is None:
            continue  # alive, or somebody else recovers it
        try:
            await _recover_one(folder, lock.stem, database, usage_of, acknowledge, cost_of, now_s, done)
        finally:
            os.close(descriptor)
    return done


async def keep_recovering(
    one_pass: Callable[[], Awaitable[Recovered]], say: Callable[[str], None], every_s: float = 10.0
) -> None:
    """Passes for ever; a failed one is told once, and tried again. `say` gets a sentence for the log."""
    failing = False
    while True:
        try:
            done = await one_pass()
        except Exception as e:  # a database or an engine that is away: nothing is lost meanwhile
            if not failing:
                say(f"rows of dead routers cannot be closed now ({type(e).__name__}); they wait")
            failing = True
        else:
            failing = False
            if done.closed or done.unknown:
                say(
                    f"closed {done.closed + done.unknown} rows that dead routers left open; for {done.unknown} no "
                    "engine could tell its tokens, and only those known to have been received are billed"
                )
        await asyncio.sleep(every_s)


async def _recover_one(
    folder: Path, life: str, database: Engine, usage_of: UsageOf, acknowledge: Acknowledge, cost_of: CostOf,
    now_s: float, done: Recovered,
) -> None:  # fmt: skip
    reader = Reader(folder, life, dead=True)
    shipped, rejected = await asyncio.to_thread(ship_all, database, reader, folder / f"{life}.rejected")
    done.lines, done.rejected, done.torn = done.lines + shipped, done.rejected + rejected, done.torn + reader.torn
    after, waiting = "", 0
    while rows := await asyncio.to_thread(_open_rows, database, life, after):
        after = rows[-1].request_id
        job_ids = [job_id for row in rows for job_id in row.job_ids()]
        counted = await usage_of(job_ids)
        ready = [row for row in rows if all(counted[i].finished for i in row.job_ids() if i in counted)]
        closed = [_closed(row, counted, cost_of, now_s) for row in ready]
        await asyncio.to_thread(_write, database, closed)
        # Only now: had we died before, the next one would have to ask again.
        await acknowledge([i for row in ready for i in row.job_ids() if i in counted])
        unknown = sum(not all(i in counted for i in row.job_ids()) for row in ready)
        done.unknown, done.closed = done.unknown + unknown, done.closed + len(ready) - unknown
        waiting += len(rows) - len(ready)
    done.waiting += waiting
    if not waiting:
        await asyncio.to_thread(forget, folder, life)
        done.routers += 1


def _closed(row: Entry, counted: Mapping[str, Counted], cost_of: CostOf, now_s: float) -> Entry:
    """As the engines counted it; where one has forgotten, at least what the router is known to have received."""
    known = [counted[i].usage for i in row.job_ids() if i in counted]
    whole = Usage.total(known)
    if len(known) < row.jobs:
        # Both are parts of the truth, and the row does not say how they overlap: billed is what is sure.
        received = Usage(row.prompt_tokens, row.output_tokens, row.cached_tokens)
        whole = Usage(*(max(parts) for parts in zip(whole, received, strict=True)))
    prompt, made, cached = whole
    closed = replace(
        row, outcome="lost", code="router_lost", closed_s=now_s, prompt_tokens=prompt, output_tokens=made,
        cached_tokens=cached, computed_prompt_tokens=prompt - cached,
    )  # fmt: skip
    return replace(closed, cost=cost_of(closed))


def _open_rows(database: Engine, life: str, after: str) -> list[Entry]:
    columns = [ledger.c[name] for name in NAMES]
    mine = (ledger.c.router == life) & ledger.c.closed_s.is_(None) & (ledger.c.request_id > after)
    with database.connect() as connection:
        rows = connection.execute(select(*columns).where(mine).order_by(ledger.c.request_id).limit(AT_ONCE))
        return [Entry(**row) for row in rows.mappings()]


def _write(database: Engine, entries: Iterable[Entry]) -> None:
    if rows := list(entries):
        with database.begin() as connection:
            write_entries(connection, rows)
