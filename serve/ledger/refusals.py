"""Refusals before the queue: a row each up to a rate per key; beyond it a counter per key, reason and minute."""

from __future__ import annotations

import threading
from typing import Any

from serve.ledger.entry import DAY_S, Entry
from serve.ledger.journal import Journal

ROWS_PER_S = 10
_MOST_BUCKETS = 10_000


class Refusals:
    """Of this process. Requests without a known key share the key "": nobody makes memory grow by inventing keys.

    Counts stand in memory until the next `write_counts`; a crash loses those of that time, never a row.
    """

    def __init__(self, journal: Journal, rows_per_s: int = ROWS_PER_S) -> None:
        self._journal, self._rate = journal, float(rows_per_s)
        self._buckets: dict[str, tuple[float, float]] = {}  # key: rows left, and when
        self._counts: dict[tuple[int, str, str], dict[str, Any]] = {}
        self._changed: set[tuple[int, str, str]] = set()
        self._mutex = threading.Lock()
        self.counted = 0  # refusals without a row of their own

    def refused(self, entry: Entry, now_s: float) -> None:
        """`now_s`: unix seconds."""
        left, since = self._buckets.get(entry.key_id, (self._rate, now_s))
        left = min(self._rate, left + max(0.0, now_s - since) * self._rate)
        if left >= 1:
            self._journal.write("c", entry.told())
            left -= 1
        else:
            self._count(entry, now_s)
        self._buckets[entry.key_id] = left, now_s
        if len(self._buckets) > _MOST_BUCKETS:
            # A key that is silent for a second has its whole rate again, as one that was never seen.
            self._buckets = {key: at for key, at in self._buckets.items() if now_s - at[1] < 1}

    def write_counts(self, now_s: float) -> None:
        """Every count that changed, whole; counters of past minutes are then forgotten."""
        with self._mutex:
            for key in self._changed:
                self._journal.write("n", self._counts[key])
            self._changed.clear()
            this_minute = _minute(now_s)
            self._counts = {key: count for key, count in self._counts.items() if key[0] >= this_minute}

    def _count(self, entry: Entry, now_s: float) -> None:
        key = _minute(now_s), entry.key_id, entry.code
        with self._mutex:
            if key not in self._counts:
                self._counts[key] = {
                    "router": entry.router, "minute_s": key[0], "key_id": entry.key_id, "code": entry.code,
                    "day": key[0] // DAY_S, "organisation_id": entry.organisation_id, "tenant_id": entry.tenant_id,
                    "requests": 0,
                }  # fmt: skip
            self._counts[key]["requests"] += 1
            self._changed.add(key)
        self.counted += 1


def _minute(now_s: float) -> int:
    return int(now_s // 60) * 60
