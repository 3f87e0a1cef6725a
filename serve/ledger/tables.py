"""The ledger's two tables, and the statements that write to them: whatever is written twice changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve.ledger.entry import MARKED, NAMES, Entry

metadata = sa.MetaData()
_WORDS = ("code", "router", "engine", "organisation_id", "tenant_id", "key_id", "model", "adapter", "form", "template")
_COUNTS = ("jobs", "prompt_tokens", "computed_prompt_tokens", "cached_tokens", "output_tokens", "cost")

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("opened_s", sa.Double, nullable=False),  # unix seconds
    sa.Column("day", sa.Integer, nullable=False),  # of UTC, from 1970-01-01
    sa.Column("closed_s", sa.Double),
    sa.Column("outcome", sa.String, nullable=False),
    *(sa.Column(name, sa.String, nullable=False) for name in _WORDS),
    sa.Column("stream", sa.Boolean, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
    *(sa.Column(name, sa.Double) for name in ("queue_s", "ttft_s", "duration_s")),
)
sa.Index("ledger_by_tenant", ledger.c.tenant_id, ledger.c.opened_s)
sa.Index("ledger_by_time", ledger.c.opened_s, ledger.c.request_id)
_OPEN = ledger.c.closed_s.is_(None)
sa.Index("ledger_open", ledger.c.router, sqlite_where=_OPEN, postgresql_where=_OPEN)

# Refusals beyond those with a row of their own. Each life of a router has counters of its own, so that what is
# written is the whole count, and writing it again is harmless.
refusals = sa.Table(
    "ledger_refusals",
    metadata,
    sa.Column("router", sa.String, primary_key=True),
    sa.Column("minute_s", sa.BigInteger, primary_key=True),  # unix seconds of its begin
    sa.Column("key_id", sa.String, primary_key=True),
    sa.Column("code", sa.String, primary_key=True),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("organisation_id", sa.String, nullable=False),
    sa.Column("tenant_id", sa.String, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
)
sa.Index("ledger_refusals_by_tenant", refusals.c.tenant_id, refusals.c.minute_s)
sa.Index("ledger_refusals_by_time", refusals.c.minute_s)


def write_entries(connection: sa.Connection, entries: list[Entry]) -> None:
    """Insert them. A closed row stays as it was closed first; an open one is replaced only by a closed one."""
    upsert = _insert(connection, ledger)
    new = upsert.excluded
    changed = {name: new[name] for name in (*NAMES, "day") if name != "request_id"}
    statement = upsert.on_conflict_do_update(
        index_elements=["request_id"], set_=changed, where=ledger.c.closed_s.is_(None) & new.closed_s.is_not(None)
    )
    connection.execute(statement, [entry.row() for entry in entries])


def write_marks(connection: sa.Connection, marks: Sequence[Mapping[str, Any]]) -> None:
    """What is known meanwhile of rows that are still open."""
    for names in {tuple(name for name in MARKED if name in mark) for mark in marks}:
        alike = [mark for mark in marks if tuple(name for name in MARKED if name in mark) == names]
        where = (ledger.c.request_id == sa.bindparam("of")) & ledger.c.closed_s.is_(None)
        statement = sa.update(ledger).where(where).values({name: sa.bindparam(f"new_{name}") for name in names})
        rows = [{"of": mark["request_id"]} | {f"new_{name}": mark[name] for name in names} for mark in alike]
        connection.execute(statement, rows)


def write_counts(connection: sa.Connection, counts: Sequence[Mapping[str, Any]]) -> None:
    """Counters of refusals; the larger of two counts is the later one."""
    upsert = _insert(connection, refusals)
    statement = upsert.on_conflict_do_update(
        index_elements=["router", "minute_s", "key_id", "code"],
        set_={"requests": upsert.excluded.requests},
        where=refusals.c.requests < upsert.excluded.requests,
    )
    connection.execute(statement, list(counts))


def _insert(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
