"""One line per request: ids, counts and times; never text. And sentences for the operator, on standard error.

Requests have a file of their own in the instance's folder, which all routers of the machine share; without one their
lines go to standard error too. Ray Serve puts a logger in the place of `sys.stderr`; `sys.__stderr__` is the real one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from serve.lines import MOST_WAITING, Counts, Lines, SharedFile, Stream
from serve.record import Record

Style = Literal["json", "text"]
Write = Callable[[str], None]
REQUESTS = "requests.log"  # in the folder of an instance
MOST_BYTES, OLDER = 64 << 20, 4  # of the file that is written to, and full ones that are kept


def request_lines(folder: Path, style: Style, most: int = MOST_WAITING) -> Lines:
    """The file of requests in an instance's folder. `most`: lines that wait in memory while it cannot be written."""
    return Lines(SharedFile(folder / REQUESTS, MOST_BYTES, OLDER), partial(_lost, style), most)


def write_line(line: str) -> None:
    """One line on standard error, out of this process before the call returns if there is room. It never raises."""
    _standard_error.write(line)


def sentences() -> Counts:
    """How many lines of standard error wait or were lost."""
    return _standard_error.counts()


def logger(style: Style, write: Write = write_line) -> Callable[[Record], None]:
    """What writes the line of a request: one JSON object, or words for a reader. It raises no more than `write`."""
    return partial(log_json if style == "json" else log_text, write=write)


def log_json(record: Record, write: Write = write_line) -> None:
    write(json.dumps({"time": _now(), "event": "request", **_told(record)}, separators=(",", ":")))


def log_text(record: Record, write: Write = write_line) -> None:
    told = _told(record)
    head = [_now(), "request", told.pop("request_id"), told.pop("outcome")]
    write(" ".join([*head, *(f"{name}={value}" for name, value in told.items())]))


def _lost(style: Style, lines: int) -> str:
    if style == "json":
        return json.dumps({"time": _now(), "event": "lines_lost", "lines": lines}, separators=(",", ":"))
    return f"{_now()} {lines} lines of this log were lost: it could not be written for too long"


def _descriptor() -> int:
    if sys.__stderr__ is None:
        raise OSError("this process has no standard error")
    return sys.__stderr__.fileno()


def _told(record: Record) -> dict[str, Any]:
    every: Mapping[str, Any] = {**asdict(record), "tpot_s": record.tpot_s}
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in every.items() if v is not None}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


_standard_error = Lines(Stream(_descriptor), partial(_lost, "text"))
