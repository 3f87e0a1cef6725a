"""From the journal to the database, in groups, on a thread of its own. While the database is away it waits and says so.

Nothing is held in memory but the group on its way: what waits, waits in the journal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from serve.ledger.entry import Entry
from serve.ledger.journal import Line, Place
from serve.ledger.reading import Reader
from serve.ledger.rejected import Rejected
from serve.ledger.tables import write_counts, write_entries, write_marks

POLL_S = 0.2
LONGEST_WAIT_S = 5.0  # between two tries while the database is away
LONGEST_REST_S = 0.05  # between two groups of a backlog
_PATIENCE_MS = 5000  # that PostgreSQL waits for somebody's lock: longer, and it is an outage that is told
# The line is to blame, not the database: values out of range, or written by another version of starserve.
_WRONG = (DataError, IntegrityError, TypeError, KeyError, ValueError, OverflowError)


class Group:
    """Lines folded, so that each row is written once: closed beats open, the first closed beats the second."""

    def __init__(self, lines: list[Line]) -> None:
        self.entries: dict[str, Entry] = {}
        self.marks: dict[str, dict[str, Any]] = {}
        self.counts: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        for kind, values in lines:
            if kind == "m":
                self.marks[values["request_id"]] = self.marks.get(values["request_id"], {}) | values
            elif kind == "n":
                self.counts[tuple(values[name] for name in ("router", "minute_s", "key_id", "code"))] = values
            elif kind == "c" or values["request_id"] not in self.entries:
                known = self.entries.get(values["request_id"])
                if known is None or known.closed_s is None:
                    self.entries[values["request_id"]] = Entry.read(values)

    def write(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL lock_timeout = {_PATIENCE_MS}"))
        if self.entries:
            write_entries(connection, list(self.entries.values()))
        closed = {request_id for request_id, entry in self.entries.items() if entry.closed_s is not None}
        if marks := [mark for request_id, mark in self.marks.items() if request_id not in closed]:
            write_marks(connection, marks)
        if self.counts:
            write_counts(connection, list(self.counts.values()))


def ship(database: Engine, lines: list[Line], rejected: Rejected) -> int:
    """Write them, each at most once. Returns how many the database takes for wrong; those go to `rejected`.

    Raises SQLAlchemyError when the database cannot be written to now, OSError when `rejected` cannot.
    """
    try:
        with database.begin() as connection:
            Group(lines).write(connection)
        return 0
    except _WRONG:
        # A line that no database takes must not hold up the others for ever.
        if len(lines) > 1:
            half = len(lines) // 2
            return ship(database, lines[:half], rejected) + ship(database, lines[half:], rejected)
        rejected.keep(lines[0])
        return 1


def ship_all(database: Engine, reader: Reader, rejected: Path) -> tuple[int, int]:
    """All of a dead router's journal: lines shipped, lines rejected."""
    kept = Rejected(rejected)
    shipped = refused = 0
    while lines := reader.read():
        refused += ship(database, lines, kept)
        shipped += len(lines)
        reader.remember()
    reader.remember()
    return shipped, refused


class Shipper:
    """The thread, which outlives whatever disk, database and log do. `say` gets a sentence when an outage begins and
    when it ends; `tick` is called before each look."""

    def __init__(
        self, database: Engine, reader: Reader, rejected: Rejected, say: Callable[[str], None],
        tick: Callable[[], None], removed: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._database, self._reader, self._rejected = database, reader, rejected
        self._say, self._tick, self._removed = say, tick, removed
        self.shipped = self.rejected = 0  # lines
        self._away_s, self._away_since = 0.0, 0.0  # 0: not away
        self._told_trouble = False  # that the place in the journal cannot be noted
        self._failures, self._flushing = 0, False
        self._stop, self._wake, self._idle = threading.Event(), threading.Event(), threading.Condition()
        self._looks = 0  # finished looks that found nothing left
        self._shipped_to = reader.place
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    @property
    def outage_s(self) -> float:
        """How long the rows did not reach the database, in all."""
        since = self._away_since
        return self._away_s + (time.monotonic() - since if since else 0.0)

    @property
    def unshipped_bytes(self) -> int:
        return self._reader.unread_bytes()

    def start(self) -> None:
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Whether everything written before this call is in the database now."""
        ends = time.monotonic() + timeout_s
        with self._idle:
            # The look under way may have begun before the last line came: the one after it has seen all.
            wanted = self._looks + 2
            self._flushing = True
            while self._looks < wanted and self._thread.is_alive() and (left_s := ends - time.monotonic()) > 0:
                self._wake.set()
                self._idle.wait(left_s)
            self._flushing = False
            return self._looks >= wanted

    def reaches(self, place: Place, timeout_s: float) -> bool:
        """Whether everything up to this place of the journal is in the database now."""
        with self._idle:
            self._wake.set()
            self._idle.wait_for(lambda: self._shipped_to >= place or not self._thread.is_alive(), timeout_s)
            return self._shipped_to >= place

    def stop(self) -> bool:
        """Whether the thread has ended: it may still wait for the database."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=1)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            began = time.monotonic()
            try:
                self._tick()
                found = self._look()
            except Exception as e:  # whatever it is: this thread must outlive it
                self._fail(e)
                continue
            with self._idle:
                self._shipped_to = self._reader.place
                self._looks += not found
                self._idle.notify_all()
            if not found:
                self._wake.wait(POLL_S)
            elif not self._flushing:
                # Requests need this interpreter as well: a backlog takes half of its time at most.
                self._stop.wait(min(time.monotonic() - began, LONGEST_REST_S))

    def _look(self) -> int:
        lines = self._reader.read()
        if lines:
            self.rejected += ship(self._database, lines, self._rejected)
        self._removed(self._reader.remember())
        self._tell_trouble(self._reader.trouble)
        if lines and self._away_since:
            away_s = time.monotonic() - self._away_since
            self._away_s, self._away_since, self._failures = self._away_s + away_s, 0.0, 0
            self._say(f"the ledger's database takes rows again, after {away_s:.0f} s; none was lost")
        self.shipped += len(lines)
        return len(lines)

    def _tell_trouble(self, why: str) -> None:
        if why and not self._told_trouble:
            self._say(f"the ledger's place in its journal cannot be noted ({why}); a crash now would cost time, no row")
        elif self._told_trouble and not why:
            self._say("the ledger's place in its journal can be noted again")
        self._told_trouble = bool(why)

    def _fail(self, error: Exception) -> None:
        self._rejected.again()
        if not self._away_since:
            self._away_since = time.monotonic()
            self._say(f"{_blamed(error)}; rows wait in the journal")
        self._failures += 1
        self._stop.wait(min(LONGEST_WAIT_S, 0.1 * 2 ** min(self._failures, 10)))


def _blamed(error: Exception) -> str:
    """Who is to blame. Only classes and codes: a driver's message may hold an address, a statement, a row."""
    if isinstance(error, SQLAlchemyError):
        said_by = getattr(error, "orig", None)
        code = getattr(said_by, "sqlite_errorname", None) or getattr(said_by, "sqlstate", None)
        return f"the ledger's database does not answer ({' '.join(filter(None, (type(error).__name__, code)))})"
    if isinstance(error, OSError):
        return f"the ledger's own files cannot be read or written ({error.strerror or type(error).__name__})"
    return f"the ledger cannot be shipped ({type(error).__name__})"
