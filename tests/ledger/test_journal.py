"""The journal when the disk is full, and refusals when there are too many."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve.ledger import journal as journal_module
from serve.ledger.entry import Entry
from serve.ledger.journal import Journal
from serve.ledger.reading import Reader
from serve.ledger.refusals import Refusals
from serve.ledger.tables import ledger, refusals
from tests.ledger.conftest import MakeLedger, a_record, stored


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond this: a write is cut there, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read_all(reader: Reader) -> list[str]:
    found = []
    while lines := reader.read():
        found += [str(line.values["request_id"]) for line in lines]
        reader.remember()
    return found


def names(since: int, until: int) -> list[str]:
    return [f"request-{i:06}" for i in range(since, until)]


def test_lines_that_a_full_disk_did_not_take_are_written_when_it_has_room(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    with full_disk(1000):
        for name in names(0, 200):
            journal.write("o", Entry(name, 1.0).told())
        assert journal.waiting > 150
        assert journal.last_error
        journal.write_waiting()
        assert journal.waiting > 150
    journal.write("o", Entry("request-000200", 1.0).told())
    journal.write_waiting()
    assert (journal.waiting, journal.unwritten) == (0, 0)
    reader = Reader(tmp_path, journal.life)
    assert read_all(reader) == names(0, 201)
    assert reader.torn == 1  # the one that was cut; it was written again, whole
    journal.close(remove=True)
    assert not list(tmp_path.iterdir())


def test_what_finds_no_room_anywhere_is_counted_and_raises_nothing(tmp_path: Path) -> None:
    journal, most = Journal(tmp_path, "r", most_bytes=500), journal_module.MOST_WAITING
    for name in names(0, most + 100):
        journal.write("o", Entry(name, 1.0).told())
    written = len(read_all(Reader(tmp_path, journal.life)))
    assert journal.waiting == most
    assert journal.unwritten == 100 - written > 0
    journal.close(remove=True)


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
        "the ledger's journal cannot be written", "the ledger's journal can be written again; 0 lines were lost",
    ]  # fmt: skip


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


def test_a_journal_grows_in_segments_and_shipped_ones_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r", segment_bytes=2000)
    reader, found = Reader(tmp_path, journal.life), list[str]()
    for i, name in enumerate(names(0, 500)):
        journal.write("o", Entry(name, 1.0).told())
        if i % 50 == 0:
            found += [str(line.values["request_id"]) for line in reader.read()]
            journal.forget(reader.remember())
    # A new reader goes on at the remembered place.
    found += read_all(Reader(tmp_path, journal.life))
    assert found == names(0, 500)
    assert len(list(tmp_path.glob("*.journal"))) == 1
    journal.close(remove=True)


def test_a_lost_position_only_means_reading_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    for name in names(0, 3):
        journal.write("o", Entry(name, 1.0).told())
    assert read_all(Reader(tmp_path, journal.life)) == names(0, 3)
    assert read_all(Reader(tmp_path, journal.life)) == []
    (tmp_path / f"{journal.life}.position").write_text("nonsense")
    assert read_all(Reader(tmp_path, journal.life)) == names(0, 3)
    journal.close(remove=True)


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


def test_a_key_that_was_silent_for_long_has_saved_up_no_rows(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    door = Refusals(journal)
    for now_s in (0.0, *[3600.0] * 50):
        door.refused(Entry("r", now_s, now_s, key_id="k", code="rate"), now_s)
    assert door.counted == 40
    journal.close(remove=True)


def test_many_keys_do_not_grow_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    door = Refusals(journal)
    for i in range(30_000):
        entry = Entry(f"r{i}", 0.0, 0.0, key_id=f"k{i}", code="rate")
        door.refused(entry, now_s=i / 100)
    assert len(door._buckets) < 10_001
    assert door.counted == 0
    journal.close(remove=True)
