"""Rows as one transaction of an administrator reads and writes them: one by one, or many at once.

An import of thousands reads everything once, decides in memory and writes in a few statements. Nobody else acts
meanwhile, because every act holds the lock of the change number.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from serve.tenants import reading
from serve.tenants.reading import ID, PARENT, TABLES
from serve.tenants.rows import Row, SecretRow
from serve.tenants.tables import AUDIT, KEYS, ORGANISATIONS, SECRETS, TENANTS
from serve.words import Level

Columns = dict[str, Any]
_IN_ORDER: tuple[Table, ...] = (ORGANISATIONS, TENANTS, KEYS, SECRETS, AUDIT)  # parents first


class Rows:
    """Of one transaction. `read_all` makes it hold everything in memory until `flush`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[Level, dict[str, Columns]] | None = None
        self._below = defaultdict[tuple[Level, str], list[str]](list)  # ids under an organisation or a tenant
        self._secrets = dict[str, tuple[SecretRow, ...]]()
        self._new = defaultdict[Table, list[Columns]](list)
        self._changed = defaultdict[tuple[Level, str], Columns](dict)

    def read_all(self) -> None:
        self._known = {level: {} for level in TABLES}
        for level, table in TABLES.items():
            for columns in reading.columns_of(self._connection, select(table)):
                self._remember(level, columns)
        self._secrets = reading.secrets_of(self._connection, select(SECRETS))

    def found(self, level: Level, object_id: str) -> Columns | None:
        """The columns of one object, removed or not."""
        if self._known is None:
            return reading.found(self._connection, level, object_id)
        columns = self._known[level].get(object_id)
        return None if columns is None else dict(columns)

    def page(self, level: Level, parent_id: str | None = None) -> list[Row]:
        """Objects that are not removed, by their ids."""
        if self._known is None:
            return reading.page(self._connection, level, parent_id)
        ids = self._known[level] if parent_id is None else self._below[level, parent_id]
        there = (self._known[level][object_id] for object_id in sorted(ids))
        return [self.value(level, columns) for columns in there if not columns["removed"]]

    def value(self, level: Level, columns: Columns) -> Row:
        if self._known is None or level != "key":
            return reading.one(self._connection, level, columns)
        return reading.key(columns, self._secrets.get(columns["key_id"], ()))

    def is_named(self, tenant_id: str, name: str, besides: str) -> bool:
        """Whether the tenant has a key of that name, besides one."""
        if self._known is not None:
            keys = (self._known["key"][key_id] for key_id in self._below["key", tenant_id])
            return any(k["name"] == name and not k["removed"] and k["key_id"] != besides for k in keys)
        same = select(KEYS.c.key_id).where(
            KEYS.c.tenant_id == tenant_id, KEYS.c.name == name, KEYS.c.removed.is_(False), KEYS.c.key_id != besides
        )
        return self._connection.execute(same).first() is not None

    def add(self, level: Level, columns: Columns) -> None:
        self._insert(TABLES[level], columns)
        if self._known is not None:
            self._remember(level, columns)

    def change(self, level: Level, object_id: str, changed: Columns) -> None:
        if self._known is not None:
            self._changed[level, object_id] |= changed
            self._known[level][object_id] |= changed
            return
        table = TABLES[level]
        self._connection.execute(update(table).where(table.c[ID[level]] == object_id).values(**changed))

    def add_secret(self, columns: Columns) -> None:
        self._insert(SECRETS, columns)
        if self._known is not None:
            key_id = columns["key_id"]
            self._secrets[key_id] = (
                *self._secrets.get(key_id, ()), SecretRow(columns["digest"], columns["created_at"])
            )  # fmt: skip

    def end_secrets(self, key_id: str, digests: list[str] | None = None) -> None:
        """Forget these secrets of a key, or all."""
        self.flush()
        which = SECRETS.c.key_id == key_id if digests is None else SECRETS.c.digest.in_(digests)
        self._connection.execute(delete(SECRETS).where(which))

    def expire_secret(self, digest: str, until: float) -> None:
        self.flush()
        self._connection.execute(update(SECRETS).where(SECRETS.c.digest == digest).values(expires_at=until))

    def tell(self, columns: Columns) -> None:
        """Into the audit log."""
        self._insert(AUDIT, columns)

    def flush(self) -> None:
        """Write what waits; from here on nothing is in memory any more."""
        for table in _IN_ORDER:
            if rows := self._new.pop(table, None):
                self._connection.execute(insert(table), rows)
        alike = defaultdict[tuple[Level, tuple[str, ...]], list[Columns]](list)
        for (level, object_id), changed in self._changed.items():
            names = tuple(sorted(changed))
            alike[level, names].append({"of": object_id} | {f"new_{name}": changed[name] for name in names})
        for (level, names), rows in alike.items():
            table = TABLES[level]
            values = {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in names}
            statement = update(table).where(table.c[ID[level]] == bindparam("of")).values(**values)
            self._connection.execute(statement, rows)
        self._changed.clear()
        self._known = None

    def _insert(self, table: Table, columns: Columns) -> None:
        if self._known is None:
            self._connection.execute(insert(table).values(**columns))
        else:
            self._new[table].append(columns)

    def _remember(self, level: Level, columns: Columns) -> None:
        assert self._known is not None
        self._known[level][columns[ID[level]]] = dict(columns)
        if level in PARENT:
            self._below[level, cast(str, columns[PARENT[level]])].append(columns[ID[level]])
