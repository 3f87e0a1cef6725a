"""The store of one deployment: transactions over its database. It blocks: never call it on an event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from serve.errors import DatabaseUnavailable, NotFound
from serve.settings import SettingsError
from serve.tenants import keys, reading
from serve.tenants.acts import Acts
from serve.tenants.rows import AuditRow, Changes, Row
from serve.tenants.tables import CHANGES
from serve.words import Level, Secret


class Store:
    """Organisations, tenants and keys in the database behind `engine`. `pepper`: what its digests were made under."""

    def __init__(self, engine: Engine, pepper: Secret, clock: Callable[[], float] = time.time) -> None:
        self._engine, self.pepper, self._clock = engine, pepper, clock

    @contextmanager
    def acting(self, actor: str) -> Iterator[Acts]:
        """One transaction of acts, all or none. `actor`: who is named in the audit log.

        It begins with the next change number and so with a lock: administrators act one after another.
        """
        with self._connected() as connection, connection.begin() as transaction:
            taken = update(CHANGES).values(number=CHANGES.c.number + 1).returning(CHANGES.c.number)
            number = connection.execute(taken).scalar_one()
            acts = Acts(connection, self.pepper, actor, number, self._clock())
            yield acts
            acts.flush()
            if not acts.told:
                transaction.rollback()  # so that no router is told of nothing

    def changes_since(self, number: int) -> Changes:
        with self._connected() as connection:
            return reading.changes_since(connection, number)

    def get(self, level: Level, object_id: str) -> Row:
        """One object, or NotFound; a removed one is not found."""
        with self._connected() as connection:
            columns = reading.found(connection, level, object_id)
            if columns is None or columns["removed"]:
                raise NotFound(f"there is no {level} {object_id}")
            return reading.one(connection, level, columns)

    def page(self, level: Level, parent_id: str | None = None, after: str = "", most: int | None = None) -> list[Row]:
        """Objects in the order of their ids, from the one behind `after` on; `parent_id`: only those below it."""
        with self._connected() as connection:
            return reading.page(connection, level, parent_id, after, most)

    def audit(self, object_id: str | None = None, before: int | None = None, most: int = 100) -> list[AuditRow]:
        """Acts, newest first."""
        with self._connected() as connection:
            return reading.audit(connection, object_id, before, most)

    def check_pepper(self) -> None:
        """SettingsError where this database's keys were made under another pepper. The first pepper is remembered."""
        mark = keys.pepper_mark(self.pepper)
        known = select(CHANGES.c.pepper_mark)
        with self._engine.begin() as connection:
            if connection.execute(known).scalar_one() is None:
                first = update(CHANGES).where(CHANGES.c.pepper_mark.is_(None)).values(pepper_mark=mark)
                connection.execute(first)
            if connection.execute(known).scalar_one() != mark:
                raise SettingsError("the keys in this database were made under another pepper; bring its file here")

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (InterfaceError, OperationalError, PoolTimeout):
            raise DatabaseUnavailable("the database does not answer; try again soon") from None
