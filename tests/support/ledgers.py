"""Rows of a ledger: one to write, and all that were stored."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from serve.ledger.ledger import Ledger
from serve.ledger.tables import ledger
from serve.record import Record

MakeLedger = Callable[..., Ledger]


def a_record(number: int = 0, **what: object) -> Record:
    record = Record(f"request-{number:06}", "chat", "theirs", tenant_id="acme", key_id="k1", model="m", stream=True)
    record.organisation_id, record.prompt_tokens, record.jobs = "org", 10, 1
    for name, value in what.items():
        setattr(record, name, value)
    return record


def stored(database: sa.Engine) -> dict[str, sa.RowMapping]:
    with database.connect() as connection:
        return {row["request_id"]: row for row in connection.execute(sa.select(ledger)).mappings()}
