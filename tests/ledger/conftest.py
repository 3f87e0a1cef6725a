"""An empty ledger on each database; PostgreSQL's server is one per module, its tables emptied before each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.database import migrate, open_database
from serve.ledger.ledger import Ledger
from serve.ledger.tables import ledger, metadata
from serve.words import Record
from tests.servers import postgres

MakeLedger = Callable[..., Ledger]


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

    def ledger_of(start: bool = True, **how: object) -> Ledger:
        made.append(Ledger(tmp_path / "journal", "router-0", database, said.append, **how))  # type: ignore[arg-type]
        if start:
            made[-1].start()
        return made[-1]

    yield ledger_of
    for one in made:
        one.stop(timeout_s=5)


def a_record(number: int = 0, **what: object) -> Record:
    record = Record(f"request-{number:06}", "chat", "theirs", tenant_id="acme", key_id="k1", model="m", stream=True)
    record.organisation_id, record.prompt_tokens, record.jobs = "org", 10, 1
    for name, value in what.items():
        setattr(record, name, value)
    return record


def stored(database: sa.Engine) -> dict[str, sa.RowMapping]:
    with database.connect() as connection:
        return {row["request_id"]: row for row in connection.execute(sa.select(ledger)).mappings()}
