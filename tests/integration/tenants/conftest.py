"""A store of its own for each test, on SQLite and on PostgreSQL; one PostgreSQL for all files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from serve.database import open_database
from serve.services import Database
from serve.tenants.development import make_store
from serve.tenants.store import Store
from serve.tenants.tables import CHANGES, METADATA
from tests.support.servers import Postgres, postgres

_COUNT = itertools.count()


@pytest.fixture(scope="session", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres | None]:
    if request.param == "sqlite":
        yield None
        return
    with postgres() as started:
        yield started


@pytest.fixture
def database(server: Postgres | None) -> Database:
    """Settings of an empty database."""
    return Database() if server is None else _new_database(server)


@pytest.fixture(scope="session")
def shared(server: Postgres | None) -> Database:
    return Database() if server is None else _new_database(server)


@pytest.fixture
def store(shared: Database, tmp_path: Path) -> Iterator[Store]:
    """A store with nothing in it; emptied afterwards, for making a database of PostgreSQL takes its time."""
    made = make_store(shared, tmp_path)
    yield made
    if shared.url is not None:
        with made._engine.begin() as connection:
            for table in reversed(METADATA.sorted_tables):
                if table is not CHANGES:
                    connection.execute(table.delete())
            connection.execute(CHANGES.update().values(number=0, pepper_mark=None))
    made.close()


def _new_database(server: Postgres) -> Database:
    engine, name = open_database(server.url), f"test_{next(_COUNT)}"
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    url = make_url(server.url).set(database=name).render_as_string(hide_password=False)
    return Database.model_validate({"url": url})
