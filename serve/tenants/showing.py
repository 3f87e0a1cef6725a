"""What is shown of the store: to people who run a deployment, never with a digest."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from serve.tenants.rows import AuditRow, Row


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
        elif name in ("created_at", "expires_at", "at"):
            value = _time(value)
        elif isinstance(value, frozenset):
            value = sorted(value)
        told[name] = value
    return told


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
