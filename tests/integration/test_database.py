"""The database of a deployment, embedded and shared."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import inspect

from serve.database import is_migrated, migrate, open_database
from tests.support.servers import postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/starserve.db"
        return
    with postgres() as server:
        yield server.url


def test_several_processes_may_bring_the_schema_up_to_date_at_once(url: str) -> None:
    engines = [open_database(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, engines))
    with engines[0].connect() as connection:
        assert is_migrated(connection)
        assert "alembic_version" in inspect(connection).get_table_names()
    for engine in engines:
        engine.dispose()
