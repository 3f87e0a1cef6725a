"""The ledger of one router process: the calls of a request's life, each one write to the journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from serve.ledger.entry import entry_of, mark_of
from serve.ledger.journal import MOST_BYTES, SEGMENT_BYTES, Journal
from serve.ledger.reading import Reader
from serve.ledger.refusals import ROWS_PER_S, Refusals
from serve.ledger.rejected import Rejected
from serve.ledger.shipping import Shipper
from serve.record import Record

FOLDER = "ledger"  # in the folder of an instance
# A mark at each prompt, at the first token and at each so many: what a dead router is known to have received.
MARK_TOKENS = 256
_NEVER = (1 << 62, 1 << 62)


@dataclass(frozen=True, slots=True)
class Counters:
    """For metrics. All but the first three only grow."""

    open: int  # rows
    waiting: int  # lines that a full disk did not take
    unshipped_bytes: int  # of journal that is not in the database yet
    shipped: int  # lines
    unwritten: int  # lines lost because neither disk nor memory had room
    rejected: int  # lines that the database takes for wrong; they lie in LIFE.rejected
    torn: int  # lines that a crash or a full disk cut
    counted_refusals: int  # refusals without a row of their own
    outage_s: float  # how long the database did not take rows


class Ledger:
    """Every call of a request's path returns in microseconds and never raises, whatever disk and database do."""

    def __init__(
        self, folder: Path, router: str, database: Engine, say: Callable[[str], None],
        *, rows_per_s: int = ROWS_PER_S, segment_bytes: int = SEGMENT_BYTES, most_bytes: int = MOST_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """`folder`: shared by all routers of this machine, kept over restarts. `router`: this replica's name. `say`
        gets a sentence for the log, from another thread, and never raises. `now`: unix seconds."""
        self._journal = Journal(folder, router, segment_bytes, most_bytes)
        self._refusals = Refusals(self._journal, rows_per_s)
        self.folder, self.database = folder, database
        self._now, self._say = now, say
        self._next_mark: dict[str, tuple[int, int]] = {}  # of each open request: output tokens, prompt tokens so far
        self._told_full = False
        self._reader = Reader(folder, self._journal.life)
        rejected = Rejected(folder / f"{self._journal.life}.rejected")
        self._shipper = Shipper(database, self._reader, rejected, self._say, self._tick, self._journal.forget)

    @property
    def router(self) -> str:
        """The name of this life of this router, as rows have it."""
        return self._journal.life

    def start(self) -> None:
        """Begin to ship. What was written before is not lost."""
        self._shipper.start()

    def opened(self, record: Record) -> None:
        """Before dispatch: the request has reached the queue. Fills `opened_s` and `router`."""
        record.opened_s, record.router = self._now(), self.router
        self._next_mark[record.request_id] = (1, record.prompt_tokens)
        self._journal.write("o", entry_of(record, self.router, record.opened_s, closed=False).told())

    def progress(self, record: Record) -> None:
        """After each event: writes a mark at each prompt, the first token and each 256th; else two comparisons."""
        made, (due, marked) = record.output_tokens, self._next_mark.get(record.request_id, _NEVER)
        if made >= due or record.prompt_tokens > marked:
            due = made // MARK_TOKENS * MARK_TOKENS + MARK_TOKENS if made else 1
            self._next_mark[record.request_id] = (due, record.prompt_tokens)
            self._journal.write("m", mark_of(record))

    def closed(self, record: Record) -> bool:
        """When it has ended, with the engines' own usage: done, refused in the queue, cancelled, failed or lost.

        True: a crash cannot undo it any more, so the engines may forget its jobs. A second call, and one for a
        request that was never opened, do nothing.
        """
        if self._next_mark.pop(record.request_id, None) is None:
            return False
        return self._journal.write("c", entry_of(record, self.router, self._now(), closed=True).told())

    def refused(self, record: Record) -> None:
        """A request that ended before it was opened, for whatever reason."""
        now_s = self._now()
        self._refusals.refused(entry_of(record, self.router, now_s, closed=True), now_s)

    def ended(self, record: Record) -> bool:
        """`closed` or `refused`, by whether it was opened: one call for a `finally`. True: as `closed` tells."""
        if record.request_id in self._next_mark:
            return self.closed(record)
        self.refused(record)
        return True

    def counters(self) -> Counters:
        return Counters(
            len(self._next_mark), self._journal.waiting, self._shipper.unshipped_bytes, self._shipper.shipped,
            self._journal.unwritten, self._shipper.rejected, self._reader.torn, self._refusals.counted,
            self._shipper.outage_s,
        )  # fmt: skip

    def flush(self, timeout_s: float) -> bool:
        """Blocks: whether everything so far is in the database. Never on the event loop."""
        return self._shipper.flush(timeout_s) and not self._journal.waiting

    def catch_up(self, timeout_s: float) -> None:
        """Blocks until the database has every row that is in the journal now; TimeoutError where it takes longer."""
        if not self._shipper.reaches(self._journal.end, timeout_s):
            raise TimeoutError("the ledger's database has not got every row yet")

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Blocks: ship what is left and end. What cannot be shipped in time stays for a router that recovers it."""
        flushed = self.flush(timeout_s)
        ended = self._shipper.stop()
        if ended:
            self._journal.close(remove=flushed and not self._next_mark)
        return flushed

    def _tick(self) -> None:
        """On the shipper's thread, before each look."""
        self._refusals.write_counts(self._now())
        self._journal.write_waiting()
        full = bool(self._journal.waiting)
        if full and not self._told_full:
            self._say(f"the ledger's journal cannot be written ({self._journal.last_error}); lines wait in memory")
        elif self._told_full and not full:
            self._say(f"the ledger's journal can be written again; {self._journal.unwritten} lines were lost")
        self._told_full = full
