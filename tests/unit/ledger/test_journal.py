"""The journal: segments, positions, a full disk, and refusals when there are too many."""

from __future__ import annotations

from pathlib import Path

from serve.ledger.entry import Entry
from serve.ledger.journal import Journal, segment
from serve.ledger.reading import Reader
from serve.ledger.refusals import Refusals
from tests.support.full_disk import full_disk


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
    most = 1000
    journal = Journal(tmp_path, "r", most_bytes=500, most_waiting=most)
    for name in names(0, most + 100):
        journal.write("o", Entry(name, 1.0).told())
    written = len(read_all(Reader(tmp_path, journal.life)))
    assert journal.waiting == most
    assert journal.unwritten == 100 - written > 0
    journal.close(remove=True)


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


def test_a_piece_of_torn_lines_hides_no_line_behind_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r", segment_bytes=300_000)
    for first in (0, 3):
        for name in names(first, first + 3):
            journal.write("o", Entry(name, 1.0).told())
        with segment(tmp_path, journal.life, 0).open("ab") as file:
            file.write(b"o 00000000 {torn}\n" * 10_000)  # more than two pieces
            file.write(b"\0" * 200_000 + b"\n")
    journal.write("o", Entry("request-000006", 1.0).told())
    journal.close(remove=False)
    for dead in (True, False):
        reader = Reader(tmp_path, journal.life, dead)
        assert read_all(reader) == names(0, 7)
        reader.remember()
        assert reader.torn > 20_000
        (tmp_path / f"{journal.life}.position").unlink()


def test_a_torn_line_counts_once_however_often_its_group_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r")
    segment(tmp_path, journal.life, 0).write_bytes(b"torn\n")
    journal.write("o", Entry("request-000000", 1.0).told())
    reader = Reader(tmp_path, journal.life)
    for _ in range(5):  # the database is away
        assert len(reader.read()) == 1
    assert reader.torn == 1
    reader.remember()
    assert (reader.read(), reader.torn) == ([], 1)
    journal.close(remove=True)


def test_a_place_that_cannot_be_noted_keeps_no_segment_and_is_noted_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "r", segment_bytes=2000)
    for name in names(0, 200):
        journal.write("o", Entry(name, 1.0).told())
    reader = Reader(tmp_path, journal.life)
    with full_disk(8):
        while reader.read():
            journal.forget(reader.remember())
            assert reader.trouble
    assert len(list(tmp_path.glob("*.journal"))) == 1
    assert journal.held_bytes == reader.unread_bytes() + segment(tmp_path, journal.life, journal._number).stat().st_size
    assert read_all(Reader(tmp_path, journal.life))  # a crash now would ship some lines again
    journal.forget(reader.remember())
    assert reader.trouble == ""
    assert read_all(Reader(tmp_path, journal.life)) == []
    journal.close(remove=True)
