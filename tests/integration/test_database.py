"""The database of a deployment, embedded and shared."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from serve.database import is_migrated, migrate, open_database
from serve.settings import SettingsError
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


def test_a_schema_that_this_version_does_not_know_is_left_alone(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/starserve.db")
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))
    for _ in range(2):
        with pytest.raises(SettingsError, match="0099"):
            migrate(engine)
    with engine.connect() as connection:
        with pytest.raises(SettingsError, match="0099"):
            is_migrated(connection)
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0099"]
    engine.dispose()
