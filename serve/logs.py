"""One line per request, on the process's own standard error: ids, counts and times; never text.

Ray Serve puts a logger in the place of `sys.stderr`; `sys.__stderr__` is the real one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

from serve.words import Record


def logger(style: Literal["json", "text"]) -> Callable[[Record], None]:
    """What writes the line of a request: one JSON object, or words for a reader."""
    return log_json if style == "json" else log_text


def log_json(record: Record) -> None:
    write_line(json.dumps({"time": _now(), "event": "request", **_told(record)}, separators=(",", ":")))


def log_text(record: Record) -> None:
    told = _told(record)
    head = [_now(), "request", told.pop("request_id"), told.pop("outcome")]
    write_line(" ".join([*head, *(f"{name}={value}" for name, value in told.items())]))


def write_line(line: str) -> None:
    """One line, out of this process before the call returns."""
    stream = sys.__stderr__
    if stream is not None:
        stream.write(line + "\n")
        stream.flush()


def _told(record: Record) -> dict[str, Any]:
    every: Mapping[str, Any] = {**asdict(record), "tpot_s": record.tpot_s}
    return {name: round(v, 4) if isinstance(v, float) else v for name, v in every.items() if v is not None}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
