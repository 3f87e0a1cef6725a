"""An empty ledger on each database; PostgreSQL's server is one per module, its tables emptied before each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.database import migrate, open_database
from serve.ledger.ledger import Ledger
from serve.ledger.tables import metadata
from tests.support.ledgers import MakeLedger
from tests.support.servers import postgres


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.full)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database')}/starserve.db"
        return
    with postgres() as server:
        yield server.url


@pytest.fixture
def database(url: str) -> Iterator[sa.Engine]:
    engine = open_database(url)
    migrate(engine)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            connection.execute(sa.delete(table))
    yield engine
    engine.dispose()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(database: sa.Engine, tmp_path: Path, said: list[str]) -> Iterator[MakeLedger]:
    """Ledgers of this folder and database, started; ended after the test."""
    made: list[Ledger] = []

    def ledger_of(start: bool = True, say: Callable[[str], None] = said.append, **how: object) -> Ledger:
        made.append(Ledger(tmp_path / "journal", "router-0", database, say, **how))  # type: ignore[arg-type]
        if start:
            made[-1].start()
        return made[-1]

    yield ledger_of
    for one in made:
        one.stop(timeout_s=5)
