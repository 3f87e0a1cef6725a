"""From rows of the database to values. Every statement has bound parameters; none is put together from text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Select, Table, select

from serve.tenants.rows import (
    NO_CEILINGS,
    NO_LIMITS,
    AuditRow,
    Changes,
    KeyRow,
    OrganisationRow,
    Row,
    SecretRow,
    TenantRow,
)
from serve.tenants.tables import AUDIT, CHANGES, KEYS, ORGANISATIONS, SECRETS, TENANTS
from serve.words import Ceilings, Level, Limits

TABLES: dict[Level, Table] = {"organisation": ORGANISATIONS, "tenant": TENANTS, "key": KEYS}
ID: dict[Level, str] = {"organisation": "organisation_id", "tenant": "tenant_id", "key": "key_id"}
PARENT: dict[Level, str] = {"tenant": "organisation_id", "key": "tenant_id"}


def change_number(connection: Connection) -> int:
    return int(connection.execute(select(CHANGES.c.number)).scalar_one())


def changes_since(connection: Connection, number: int) -> Changes:
    """What a router that has seen everything up to `number` has not seen; one short query when that is nothing.

    The number is read first and children before their parents: what is committed meanwhile is read again next time,
    and no key is ever seen without its tenant.
    A number below the router's own means that an older database was put in place: then everything is read.
    """
    now = change_number(connection)
    if now == number:
        return Changes(now)
    whole = now < number or number == 0
    since = 0 if whole else number
    keys = columns_of(connection, select(KEYS).where(KEYS.c.change > since))
    tenants = columns_of(connection, select(TENANTS).where(TENANTS.c.change > since))
    organisations = columns_of(connection, select(ORGANISATIONS).where(ORGANISATIONS.c.change > since))
    secrets = secrets_of(connection, select(SECRETS).join(KEYS).where(KEYS.c.change > since))
    return Changes(
        now,
        whole,
        tuple(organisation(o) for o in organisations),
        tuple(tenant(t) for t in tenants),
        tuple(key(k, secrets.get(k["key_id"], ())) for k in keys),
    )


def found(connection: Connection, level: Level, object_id: str) -> dict[str, Any] | None:
    """The columns of one object, removed or not."""
    table = TABLES[level]
    rows = columns_of(connection, select(table).where(table.c[ID[level]] == object_id))
    return rows[0] if rows else None


def page(
    connection: Connection, level: Level, parent_id: str | None = None, after: str = "", most: int | None = None
) -> list[Row]:
    """Objects that are not removed, by their ids, from the one behind `after` on."""
    table, column = TABLES[level], TABLES[level].c[ID[level]]
    query = select(table).where(table.c.removed.is_(False), column > after).order_by(column).limit(most)
    if parent_id is not None and level in PARENT:
        query = query.where(table.c[PARENT[level]] == parent_id)
    rows = columns_of(connection, query)
    if level != "key":
        return [organisation(r) if level == "organisation" else tenant(r) for r in rows]
    secrets = secrets_of(connection, select(SECRETS).where(SECRETS.c.key_id.in_(query.with_only_columns(column))))
    return [key(r, secrets.get(r["key_id"], ())) for r in rows]


def one(connection: Connection, level: Level, columns: dict[str, Any]) -> Row:
    """The value of an object's columns."""
    if level == "key":
        key_id = columns["key_id"]
        return key(columns, secrets_of(connection, select(SECRETS).where(SECRETS.c.key_id == key_id)).get(key_id, ()))
    return organisation(columns) if level == "organisation" else tenant(columns)


def audit(connection: Connection, object_id: str | None, before: int | None, most: int) -> list[AuditRow]:
    """The last acts, newest first; `before`: only those older than that one."""
    query = select(AUDIT).order_by(AUDIT.c.audit_id.desc()).limit(most)
    if object_id is not None:
        query = query.where(AUDIT.c.object_id == object_id)
    if before is not None:
        query = query.where(AUDIT.c.audit_id < before)
    return [AuditRow(**row) for row in columns_of(connection, query)]


def organisation(columns: Mapping[str, Any]) -> OrganisationRow:
    return OrganisationRow(
        columns["organisation_id"], _limits(columns["limits"]), columns["suspended"], columns["removed"],
        columns["created_at"],
    )  # fmt: skip


def tenant(columns: Mapping[str, Any]) -> TenantRow:
    ceilings = Ceilings(**columns["ceilings"]) if columns["ceilings"] else NO_CEILINGS
    return TenantRow(
        columns["tenant_id"], columns["organisation_id"], columns["weight"], columns["band"],
        _names(columns["models"]), _limits(columns["limits"]), ceilings, columns["suspended"], columns["removed"],
        columns["created_at"],
    )  # fmt: skip


def key(columns: Mapping[str, Any], secrets: tuple[SecretRow, ...]) -> KeyRow:
    return KeyRow(
        columns["key_id"], columns["tenant_id"], columns["name"], secrets, frozenset(columns["scopes"]),
        _names(columns["models"]), _limits(columns["limits"]), columns["expires_at"], columns["suspended"],
        columns["removed"], columns["created_at"],
    )  # fmt: skip


def secrets_of(connection: Connection, query: Select[Any]) -> dict[str, tuple[SecretRow, ...]]:
    """Of each key."""
    found = defaultdict[str, list[SecretRow]](list)
    for row in columns_of(connection, query.order_by(SECRETS.c.created_at)):
        found[row["key_id"]].append(SecretRow(row["digest"], row["created_at"], row["expires_at"]))
    return {key_id: tuple(rows) for key_id, rows in found.items()}


def columns_of(connection: Connection, query: Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _limits(columns: dict[str, int]) -> Limits:
    return Limits(**columns) if columns else NO_LIMITS


def _names(column: list[str] | None) -> frozenset[str] | None:
    return None if column is None else frozenset(column)
