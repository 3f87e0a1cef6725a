"""What is shown of the store: to people who run a deployment, never with a digest."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from serve.tenants.rows import AuditRow, Row

_FIRST_S, _LAST_S = -62_135_596_800.0, 253_402_300_799.0  # the years 1 and 9999, of UTC


def shown(row: Row | AuditRow) -> dict[str, Any]:
    """A row as JSON: times as ISO 8601 of UTC, only those limits that there are."""
    told = dict[str, Any]()
    for name, value in asdict(row).items():
        if name == "removed":
            continue
        if name == "secrets":
            value = [{n: _time(s[n]) for n in ("created_at", "expires_at")} for s in value]
        elif name in ("limits", "ceilings"):
            value = {n: v for n, v in value.items() if v is not None}
        elif name == "changes":
            value = {n: [_time(v) for v in pair] if n == "expires_at" else pair for n, pair in value.items()}
        elif name in ("created_at", "expires_at", "at"):
            value = _time(value)
        elif isinstance(value, frozenset):
            value = sorted(value)
        told[name] = value
    return told


def _time(seconds: float | None) -> str | None:
    """What lies outside the calendar shows as its end: a row that can be kept can be shown."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(min(max(seconds, _FIRST_S), _LAST_S), UTC).isoformat(timespec="seconds")
