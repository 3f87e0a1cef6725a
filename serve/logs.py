"""One structured line per request, on the process's own standard error: ids, counts and times; never text.

Ray Serve puts a logger in the place of `sys.stderr`; `sys.__stderr__` is the real one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime

from serve.words import Record


def log_json(record: Record) -> None:
    told = {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(record).items() if v is not None}
    stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "request", **told}
    write_line(json.dumps(stamped, separators=(",", ":")))


def write_line(line: str) -> None:
    """One line, out of this process before the call returns."""
    stream = sys.__stderr__
    if stream is not None:
        stream.write(line + "\n")
        stream.flush()
