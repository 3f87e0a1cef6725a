"""The ledger of a living router: what is written arrives, once, as it was; whatever the database does meanwhile."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from serve.database import migrate, open_database
from serve.ledger.entry import Entry, entry_of
from serve.ledger.journal import Line, framed, parsed
from serve.ledger.ledger import Ledger
from serve.ledger.rejected import Rejected
from serve.ledger.shipping import ship
from serve.ledger.tables import metadata, refusals
from serve.record import Record
from tests.support.ledgers import MakeLedger, a_record, stored
from tests.support.servers import postgres


def lived(make: MakeLedger, number: int, outcome: str, tokens: int) -> Record:
    record = a_record(number)
    one = make()
    one.opened(record)
    for record.output_tokens in range(1, tokens + 1):
        one.progress(record)
    record.outcome, record.duration_s, record.ttft_s, record.queue_s = outcome, 1.5, 0.25, 0.125
    record.cached_tokens, record.computed_prompt_tokens, record.cost, record.engine = 4, 6, 77, "engine-1"
    one.closed(record)
    assert one.flush(20)
    return record


@pytest.mark.parametrize("outcome", ["done", "refused", "cancelled", "failed", "lost"])
def test_a_request_that_reached_the_queue_has_one_row_with_all_that_is_known(
    make: MakeLedger, database: sa.Engine, outcome: str
) -> None:
    record = lived(make, 1, outcome, 600)
    row = dict(stored(database)[record.request_id])
    assert record.opened_s is not None
    assert record.router is not None
    assert row == {
        "request_id": "request-000001", "opened_s": record.opened_s, "day": record.opened_s // 86400,
        "closed_s": pytest.approx(time.time(), abs=60), "outcome": outcome, "code": "", "router": record.router,
        "engine": "engine-1", "organisation_id": "org", "tenant_id": "acme", "key_id": "k1", "model": "m",
        "adapter": "", "form": "chat", "template": "", "stream": True, "jobs": 1, "prompt_tokens": 10,
        "computed_prompt_tokens": 6, "cached_tokens": 4, "output_tokens": 600, "cost": 77, "queue_s": 0.125,
        "ttft_s": 0.25, "duration_s": 1.5,
    }  # fmt: skip


def test_an_open_row_knows_the_first_token_and_each_256th(make: MakeLedger, database: sa.Engine) -> None:
    one, record, seen = make(), a_record(), []
    one.opened(record)
    for record.output_tokens in range(0, 700):
        one.progress(record)
        if record.output_tokens in (0, 1, 255, 256, 511, 512, 699):
            assert one.flush(20)
            seen.append(stored(database)[record.request_id]["output_tokens"])
    assert seen == [0, 1, 1, 256, 256, 512, 512]
    assert stored(database)[record.request_id]["outcome"] == "open"
    assert one.counters().open == 1


@pytest.mark.parametrize("order", ["oc", "co", "omcx", "cx", "ocox", "com", "ccoomx"])
@pytest.mark.parametrize("folded", [True, False])
def test_what_is_shipped_twice_or_late_changes_nothing(
    database: sa.Engine, tmp_path: Path, order: str, folded: bool
) -> None:
    opened = entry_of(a_record(), "r", 100.0, closed=False).told()
    done = entry_of(a_record(outcome="done", output_tokens=5, opened_s=100.0), "r", 101.0, closed=True).told()
    again = entry_of(a_record(outcome="lost", output_tokens=9, opened_s=100.0), "r", 102.0, closed=True).told()
    mark = {"request_id": "request-000000", "output_tokens": 256}
    of = {"o": Line("o", opened), "c": Line("c", done), "x": Line("c", again), "m": Line("m", mark)}
    lines = [of[letter] for letter in order]
    for part in [lines] if folded else [[line] for line in lines]:
        for _ in range(2):
            assert ship(database, part, Rejected(tmp_path / "rejected")) == 0
    assert len(stored(database)) == 1
    row = stored(database)["request-000000"]
    assert (row["outcome"], row["output_tokens"], row["closed_s"]) == ("done", 5, 101.0)


def test_a_late_count_never_lowers_one(database: sa.Engine, tmp_path: Path) -> None:
    count = {"router": "r", "minute_s": 60, "key_id": "k", "code": "c", "day": 0, "organisation_id": "",
             "tenant_id": "t"}  # fmt: skip
    for requests in (3, 7, 5):
        ship(database, [Line("n", {**count, "requests": requests})], Rejected(tmp_path / "rejected"))
    with database.connect() as connection:
        assert connection.execute(sa.select(refusals.c.requests)).scalar_one() == 7


@contextmanager
def locked(database: sa.Engine) -> Iterator[None]:
    """Somebody else holds the lock that every write needs."""
    with database.connect() as connection:
        if database.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


def test_a_locked_database_slows_no_request_and_loses_none(
    make: MakeLedger, database: sa.Engine, said: list[str]
) -> None:
    one = make()

    def life(number: int) -> float:
        record = a_record(number, outcome="done", output_tokens=number)
        began = time.perf_counter()
        one.opened(record)
        one.closed(record)
        return time.perf_counter() - began

    free = statistics.median(life(i) for i in range(500))
    with locked(database):
        ends, number, held = time.monotonic() + 7, 500, []
        while time.monotonic() < ends:
            held.append(life(number))
            number += 1
            time.sleep(0.001)
        assert not one.flush(0.1)
        assert one.counters().outage_s > 0
        assert one.counters().unshipped_bytes > 0
    assert statistics.median(held) < 5 * free + 0.001
    assert one.flush(30)
    rows = stored(database)
    assert sum(row["output_tokens"] for row in rows.values()) == sum(range(number))
    assert {row["outcome"] for row in rows.values()} == {"done"}
    assert len(said) == 2  # once when it begins, once when it ends
    assert "does not answer (OperationalError" in said[0]
    assert ("SQLITE_BUSY" if database.dialect.name == "sqlite" else "55P03") in said[0]
    assert "takes rows again" in said[1]


def test_catching_up_waits_for_what_is_written_and_not_for_what_comes(make: MakeLedger, database: sa.Engine) -> None:
    one, ends = make(), threading.Event()
    with locked(database):
        one.opened(a_record(0))
        with pytest.raises(TimeoutError):
            one.catch_up(0.2)
    one.catch_up(20)
    assert len(stored(database)) == 1

    def write() -> None:
        number = 1
        while not ends.wait(0.0005):
            one.opened(a_record(number))
            number += 1

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(20):
            opened = one.counters().open
            one.catch_up(5)
            assert len(stored(database)) >= opened
    finally:
        ends.set()
        writing.join()


def test_a_database_that_crashes_and_comes_back_has_every_row(tmp_path: Path, said: list[str]) -> None:
    with postgres() as server:
        database = open_database(server.url)
        migrate(database)
        one = Ledger(tmp_path, "r", database, said.append)
        one.start()
        for i in range(200):
            if i == 100:
                server.kill()
            one.opened(record := a_record(i, outcome="done", output_tokens=i))
            assert one.closed(record)
            time.sleep(0.005)
        assert not one.flush(0.5)
        server.start()
        assert one.flush(30)
        assert sum(row["output_tokens"] for row in stored(database).values()) == sum(range(200))
        assert one.stop()
        assert len(said) == 2
        database.dispose()


@pytest.mark.parametrize(
    "wrong", [{"output_tokens": None}, {"cost": 1 << 70}, {"model": "\0"}, {"opened_s": "x"}, None]
)
def test_a_line_that_the_database_takes_for_wrong_holds_up_no_other(
    database: sa.Engine, tmp_path: Path, wrong: dict[str, object] | None
) -> None:
    lines = [Line("c", entry_of(a_record(i), "r", 1.0, closed=True).told()) for i in range(9)]
    if wrong is None:
        del lines[4].values["opened_s"]
    else:
        lines[4].values.update(wrong)
    rejected = tmp_path / "rejected"
    if ship(database, lines, Rejected(rejected)):
        assert len(stored(database)) == 8
        assert "request-000004" in rejected.read_text()
    else:
        assert wrong == {"model": "\0"}  # SQLite alone takes it
        assert database.dialect.name == "sqlite"
        assert len(stored(database)) == 9


def test_names_from_clients_fit_into_every_database(make: MakeLedger, database: sa.Engine) -> None:
    one = make()
    one.refused(a_record(1, outcome="refused", model='=cmd|"\0\ud800' + "x" * 1000))
    assert one.flush(20)
    assert stored(database)["request-000001"]["model"].startswith("?cmd????xxx")
    assert one.counters().rejected == 0


def test_the_tables_are_those_of_the_migrations(database: sa.Engine) -> None:
    ours = set(metadata.tables)

    def include(thing: object, name: str | None, kind: str, *_: object) -> bool:
        return kind != "table" or name in ours

    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": include})
        assert compare_metadata(context, metadata) == []
        for name in ours:
            built = {index["name"]: index["column_names"] for index in sa.inspect(connection).get_indexes(name)}
            meant = {str(i.name): [c.name for c in i.columns] for i in metadata.tables[name].indexes}
            assert built == meant


def test_a_clean_stop_leaves_no_file_and_an_open_request_leaves_its_journal(make: MakeLedger, tmp_path: Path) -> None:
    first, second = make(), make()
    second.opened(a_record(2))
    assert first.stop()
    assert [path.name.split(".")[0] for path in (tmp_path / "journal").glob("*.lock")] == [second.router]


def test_a_line_that_was_cut_or_changed_is_seen() -> None:
    entry = Entry("a", 1.0, model="ü\n")
    line = framed("c", entry.told())
    assert line.count(b"\n") == 1
    read = parsed(line[:-1])
    assert read is not None
    assert Entry.read(read.values) == entry
    assert [parsed(line[:cut]) for cut in range(len(line) - 1)] == [None] * (len(line) - 1)
    assert parsed(b"o" + line[1:-1]) is None


def test_many_threads_may_write_to_one_journal(make: MakeLedger, database: sa.Engine) -> None:
    one = make(segment_bytes=4096)

    def refuse_ten(key: int) -> None:
        for i in range(10):
            one.refused(a_record(key * 100 + i, key_id=f"k{key}"))

    threads = [threading.Thread(target=refuse_ten, args=(key,)) for key in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.flush(20)
    assert len(stored(database)) == 80
