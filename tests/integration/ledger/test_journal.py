"""What a full disk, a full journal and a flood of refusals leave in the database."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.ledger.tables import ledger, refusals
from serve.lines import Lines
from tests.support.full_disk import Room, full_disk
from tests.support.ledgers import MakeLedger, a_record, stored


def test_a_full_disk_is_told_once_and_loses_nothing(
    make: MakeLedger, database: sa.Engine, said: list[str], tmp_path: Path
) -> None:
    # The shipper may not start before the limit is gone: SQLite's files fall under it too.
    one = make(start=False)
    with full_disk(1000):
        for i in range(50):
            one.opened(record := a_record(i, outcome="done", output_tokens=1))
            one.closed(record)
        assert one.counters().waiting > 80
        one._tick()
    one.start()
    assert one.flush(20)
    assert (one.counters().waiting, one.counters().unwritten, one.counters().torn) == (0, 0, 1)
    assert {row["outcome"] for row in stored(database).values()} == {"done"}
    assert len(stored(database)) == 50
    assert [sentence.split(" (")[0] for sentence in said] == [
        "the ledger's journal cannot be written",
        "the ledger's journal can be written again; 0 lines were lost",
    ]


def test_a_full_disk_under_journal_database_and_log_ends_nothing_and_heals(
    make: MakeLedger, database: sa.Engine, said: list[str]
) -> None:
    full, on_it = threading.Event(), database.dialect.name == "sqlite"

    log = Lines(Room(full, said), str, again_s=0.05)
    one = make(say=log.write)
    one.opened(record := a_record(0, outcome="done"))
    one.closed(record)
    assert one.flush(20)
    full.set()
    with full_disk(1000):
        for i in range(1, 50):
            one.opened(record := a_record(i, outcome="done"))
            one.closed(record)
        ends = time.monotonic() + 10
        while not one.counters().waiting or (on_it and not one.counters().outage_s):
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert not one.flush(0.3)
    full.clear()
    assert one.flush(20)
    assert (one.counters().unwritten, one.counters().rejected) == (0, 0)
    assert {row["outcome"] for row in stored(database).values()} == {"done"}
    assert len(stored(database)) == 50
    said_of = "\n".join(said)
    assert said_of.count("journal cannot be written") == 1
    for sentence in ("does not answer (OperationalError", "takes rows again"):
        assert said_of.count(sentence) == on_it


def test_trouble_with_the_ledgers_own_files_is_not_told_as_the_databases(
    make: MakeLedger, database: sa.Engine, said: list[str], tmp_path: Path
) -> None:
    one = make(start=False)
    in_the_way = tmp_path / "journal" / f"{one.router}.rejected"
    in_the_way.mkdir()
    one.opened(a_record(1, prompt_tokens=None))  # no database takes it
    one.opened(record := a_record(2, outcome="done"))
    one.closed(record)
    one.start()
    assert not one.flush(0.3)
    in_the_way.rmdir()
    assert one.flush(20)
    assert len(stored(database)) == 1
    assert len(in_the_way.read_text().splitlines()) == one.counters().rejected == 1
    assert said[0] == "the ledger's own files cannot be read or written (Is a directory); rows wait in the journal"


def test_a_journal_that_reached_its_bound_goes_on_when_it_is_shipped(make: MakeLedger, database: sa.Engine) -> None:
    one = make(start=False, most_bytes=10_000)
    for i in range(100):
        one.opened(record := a_record(i, outcome="done"))
        one.closed(record)
    assert one.counters().waiting > 100
    assert one.counters().unshipped_bytes <= 10_000
    one.start()
    assert one.flush(20)
    assert (one.counters().unwritten, one.counters().waiting) == (0, 0)
    assert {row["outcome"] for row in stored(database).values()} == {"done"}
    assert len(stored(database)) == 100


def test_a_flood_of_refusals_has_ten_rows_a_second_per_key_and_the_rest_is_counted(
    make: MakeLedger, database: sa.Engine
) -> None:
    clock = [1_000_000_060.0]  # 20 s before a minute ends
    one = make(now=lambda: clock[0])
    for i in range(60_000):  # 2000/s for 30 s
        clock[0] += 1 / 2000
        key = ("k1", "k2", None)[i % 3]
        one.refused(a_record(i, outcome="refused", code=("rate", "quota")[i // 3 % 2], key_id=key))
    assert one.flush(20)
    with database.connect() as connection:
        per_key = sa.select(ledger.c.key_id, sa.func.count().label("rows")).group_by(ledger.c.key_id)
        of_key = {row["key_id"]: row["rows"] for row in connection.execute(per_key).mappings()}
        counted = connection.execute(sa.select(refusals)).mappings().all()
    assert of_key == {key: pytest.approx(310, abs=2) for key in ("k1", "k2", "")}  # ten at once, then ten a second
    assert len(counted) == 3 * 2 * 2  # keys, reasons, minutes
    assert sum(row["requests"] for row in counted) + sum(of_key.values()) == 60_000
    assert one.counters().counted_refusals == sum(row["requests"] for row in counted)
    assert one.counters().unshipped_bytes == 0
