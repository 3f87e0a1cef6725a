"""What the ledger tells: sums by day, model and whoever it was; every row in its order; and what may be forgotten.

All of it reads in pages, so that memory stays the same however long the ledger is.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from serve.ledger.entry import DAY_S, NAMES, OPEN, name_of
from serve.ledger.tables import ledger, refusals
from serve.words import Level, Tenant

By = Literal["day", "model", "key", "tenant", "organisation"]
OUTCOMES = ("done", "refused", "cancelled", "failed", "lost", OPEN)
_SUMMED = ("prompt_tokens", "computed_prompt_tokens", "cached_tokens", "output_tokens", "cost")
_COLUMN_OF = {"day": "day", "model": "model", "key": "key_id", "tenant": "tenant_id",
              "organisation": "organisation_id"}  # fmt: skip
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Usage:
    """The sums of one group. Day, model and the ids are None where it is not grouped by them."""

    day: str | None  # of UTC, as 2026-11-25
    model: str | None  # "" for requests that were refused before their model was known
    key_id: str | None
    requests: dict[str, int]  # by outcome
    prompt_tokens: int  # billed
    computed_prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: int  # millionths of the deployment's currency
    tenant_id: str | None = None  # "" for requests of nobody that is known
    organisation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[Usage]
    cursor: str | None  # of the next page; None: this was the last


def usage(
    database: sa.Engine, tenant_id: str | None, since_s: float, until_s: float,
    by: Sequence[By] = ("day", "model", "key"), cursor: str | None = None, limit: int = 100,
    organisation_id: str | None = None,
) -> Page:  # fmt: skip
    """Usage of a tenant, an organisation or, where both are None, everybody, of requests opened in since ≤ t < until.

    Sorted by what it is grouped by.
    `limit`: groups in one page, at most 1000. Raises ValueError for a cursor that is none of ours.
    """
    columns = [_COLUMN_OF[name] for name in by]
    both = _both(tenant_id, organisation_id, since_s, until_s).subquery()
    groups = [both.c[name] for name in columns]
    sums = [sa.func.sum(sa.case((both.c.outcome == o, both.c.requests), else_=0)).label(f"of_{o}") for o in OUTCOMES]
    sums += [sa.func.sum(both.c[name]).label(name) for name in _SUMMED]
    query = sa.select(*groups, *sums).group_by(*groups).order_by(*groups).limit(min(limit, PAGE) + 1)
    if not groups:
        query = sa.select(*sums)
    elif cursor is not None:
        query = query.where(sa.tuple_(*groups) > sa.tuple_(*(sa.literal(v) for v in _read_cursor(cursor, columns))))
    with database.connect() as connection:
        found = [dict(row) for row in connection.execute(query).mappings()]
    more = bool(groups) and len(found) > min(limit, PAGE)
    shown = found[: min(limit, PAGE)]
    return Page([_usage(row) for row in shown], _cursor([shown[-1][name] for name in columns]) if more else None)


class Spent(NamedTuple):
    """What was used so far in the windows that are open now, both of UTC."""

    day_tokens: int
    month_cost: int


def spent(database: sa.Engine, tenant: Tenant, level: Level, now_s: float) -> Spent:
    """What a tenant's key, the tenant itself or its organisation used this day and this month.

    The same rows as `usage` sums, but for open ones: what these use is held as long as they run.
    """
    now = datetime.fromtimestamp(now_s, UTC)
    month_s = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    whose = {
        "key": (ledger.c.tenant_id == tenant.tenant_id) & (ledger.c.key_id == tenant.key_id),
        "tenant": ledger.c.tenant_id == tenant.tenant_id,
        "organisation": ledger.c.organisation_id == tenant.organisation_id,
    }
    closed = ledger.c.closed_s.is_not(None) & (ledger.c.opened_s >= month_s) & whose[level]
    today = ledger.c.day == int(now_s // DAY_S)
    tokens = sa.case((today, ledger.c.prompt_tokens + ledger.c.output_tokens), else_=0)
    query = sa.select(sa.func.sum(tokens), sa.func.sum(ledger.c.cost)).where(closed)
    with database.connect() as connection:
        day_tokens, month_cost = connection.execute(query).one()
    return Spent(int(day_tokens or 0), int(month_cost or 0))


class Accounted(NamedTuple):
    """What the ledger has of some engines."""

    output_tokens: int
    lost_requests: int
    open_requests: int


def accounted(database: sa.Engine, engines: Sequence[str], since_s: float) -> Accounted:
    """Of these engines, and of requests opened since then whose engine nobody learned: their router was killed."""
    total = Accounted(0, 0, 0)
    nameless = (ledger.c.engine == "") & (ledger.c.opened_s >= since_s)
    pages = [ledger.c.engine.in_(engines[at : at + PAGE]) for at in range(0, len(engines), PAGE)]
    with database.connect() as connection:
        for where in (nameless, *pages):
            is_open, is_lost = ledger.c.closed_s.is_(None), ledger.c.outcome == "lost"
            sums = (ledger.c.output_tokens, sa.case((is_lost, 1), else_=0), sa.case((is_open, 1), else_=0))
            found = connection.execute(sa.select(*(sa.func.sum(each) for each in sums)).where(where)).one()
            total = Accounted(*(before + int(more or 0) for before, more in zip(total, found, strict=True)))
    return total


def rows(database: sa.Engine, since_s: float, until_s: float, tenant_id: str | None = None) -> Iterator[dict[str, Any]]:
    """Every row, by the time at which it was opened; refusals that were only counted are not among them."""
    columns = [ledger.c[name] for name in NAMES]
    after: tuple[float, str] = (since_s, "")
    while True:
        # The first comparison is for the index: a tuple's alone is not always used.
        here = (ledger.c.opened_s >= after[0]) & (ledger.c.opened_s < until_s)
        order = sa.tuple_(ledger.c.opened_s, ledger.c.request_id)
        here &= order > sa.tuple_(*(sa.literal(value) for value in after))
        if tenant_id is not None:
            here &= ledger.c.tenant_id == tenant_id
        page = sa.select(*columns).where(here).order_by(ledger.c.opened_s, ledger.c.request_id).limit(PAGE)
        with database.connect() as connection:
            found = [dict(row) for row in connection.execute(page).mappings()]
        yield from found
        if len(found) < PAGE:
            return
        after = found[-1]["opened_s"], found[-1]["request_id"]


def counted_refusals(
    database: sa.Engine, since_s: float, until_s: float, tenant_id: str | None = None
) -> Iterator[dict[str, Any]]:
    """Refusals without a row of their own: one per minute, key and reason, all routers together."""
    columns = [refusals.c[name] for name in ("minute_s", "organisation_id", "tenant_id", "key_id", "code")]
    where = (refusals.c.minute_s >= since_s) & (refusals.c.minute_s < until_s)
    if tenant_id is not None:
        where &= refusals.c.tenant_id == tenant_id
    total = sa.cast(sa.func.sum(refusals.c.requests), sa.BigInteger).label("requests")
    query = sa.select(*columns, total).where(where).group_by(*columns).order_by(*columns)
    with database.connect() as connection:
        yield from (dict(row) for row in connection.execution_options(yield_per=PAGE).execute(query).mappings())


def json_lines(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in found:
        yield json.dumps(row, separators=(",", ":")) + "\n"


def csv_lines(found: Iterable[dict[str, Any]], names: Sequence[str] = NAMES) -> Iterator[str]:
    """A line of names, then a line per row."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(names)
    for row in found:
        yield line.getvalue()
        line.seek(0)
        line.truncate()
        writer.writerow([row[name] for name in names])
    yield line.getvalue()


def prune(database: sa.Engine, before_s: float) -> int:
    """Forget closed rows and counters from before, a page at a time so that nobody waits. Returns how many."""
    closed = ledger.c.closed_s.is_not(None) & (ledger.c.opened_s < before_s)
    old = sa.select(ledger.c.request_id).where(closed).order_by(ledger.c.opened_s).limit(PAGE)
    removed = 0
    while gone := _delete(database, ledger, ledger.c.request_id.in_(old)):
        removed += gone
    return removed + _delete(database, refusals, refusals.c.minute_s < before_s)


def _delete(database: sa.Engine, table: sa.Table, where: sa.ColumnElement[bool]) -> int:
    with database.begin() as connection:
        return connection.execute(sa.delete(table).where(where)).rowcount


def _both(tenant_id: str | None, organisation_id: str | None, since_s: float, until_s: float) -> Any:
    """Rows and counters in one shape."""
    of_rows = (ledger.c.opened_s >= since_s) & (ledger.c.opened_s < until_s)
    of_counts = (refusals.c.minute_s >= since_s) & (refusals.c.minute_s < until_s)
    if tenant_id is not None:
        of_rows &= ledger.c.tenant_id == tenant_id
        of_counts &= refusals.c.tenant_id == tenant_id
    if organisation_id is not None:
        of_rows &= ledger.c.organisation_id == organisation_id
        of_counts &= refusals.c.organisation_id == organisation_id
    names = (*_COLUMN_OF.values(), "outcome")
    single: sa.Select[Any] = sa.select(
        *(ledger.c[name] for name in names),
        sa.literal(1, sa.Integer).label("requests"),
        *(ledger.c[n] for n in _SUMMED),
    ).where(of_rows)
    counted: sa.Select[Any] = sa.select(
        refusals.c.day, sa.literal("").label("model"), refusals.c.key_id, refusals.c.tenant_id,
        refusals.c.organisation_id, sa.literal("refused").label("outcome"),
        refusals.c.requests, *(sa.literal(0, sa.BigInteger).label(n) for n in _SUMMED),
    ).where(of_counts)  # fmt: skip
    return sa.union_all(single, counted)


def _usage(row: dict[str, Any]) -> Usage:
    day = None if "day" not in row else datetime.fromtimestamp(row["day"] * DAY_S, UTC).date().isoformat()
    # PostgreSQL sums BIGINT to NUMERIC, and nothing at all to NULL.
    requests = {o: n for o in OUTCOMES if (n := int(row[f"of_{o}"] or 0))}
    sums = {name: int(row[name] or 0) for name in _SUMMED}
    return Usage(
        day, row.get("model"), row.get("key_id"), requests, tenant_id=row.get("tenant_id"),
        organisation_id=row.get("organisation_id"), **sums,
    )  # fmt: skip


def _cursor(values: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


def _read_cursor(cursor: str, columns: list[str]) -> list[Any]:
    """Anybody can write one, so it holds only what a database can compare with; whose rows are read, it cannot say."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (binascii.Error, ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != len(columns) or not all(map(_may_be_of, columns, values)):
        raise ValueError("this cursor was not given by this server for this grouping")
    return values


def _may_be_of(column: str, value: Any) -> bool:
    if column == "day":
        return type(value) is int and 0 <= value < 1 << 31
    return isinstance(value, str) and name_of(value) == value
