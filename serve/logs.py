"""One structured line per request, on the process's own standard error: ids, counts and times; never text.

Ray Serve puts a logger in the place of `sys.stderr`; `sys.__stderr__` is the real one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def log_json(line: Mapping[str, Any]) -> None:
    stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line}
    write_line(json.dumps(stamped, separators=(",", ":")))


def write_line(line: str) -> None:
    """One line, out of this process before the call returns."""
    stream = sys.__stderr__
    if stream is not None:
        stream.write(line + "\n")
        stream.flush()
