"""One structured line per request, on standard error: ids, counts and times; never text."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def log_json(line: Mapping[str, Any]) -> None:
    stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **line}
    sys.stderr.write(json.dumps(stamped, separators=(",", ":")) + "\n")
    sys.stderr.flush()
