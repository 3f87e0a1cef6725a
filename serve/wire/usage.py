"""GET /v1/usage: what the tenant of a key has used, by day, model and key. Nobody sees another tenant's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol, cast, get_args

from serve.errors import BadRequest
from serve.ledger.usage import By, Page

DAY_S = 86_400
MOST_DAYS = 366
_KNOWN = ("since", "until", "by", "limit", "cursor")


class UsageOf(Protocol):
    """Reads the ledger. It blocks."""

    def __call__(
        self, tenant_id: str, since_s: float, until_s: float, by: Sequence[By], cursor: str | None, limit: int
    ) -> Page: ...


async def usage_page(
    usage_of: UsageOf, tenant_id: str, query: Mapping[str, str], currency: str, now: Callable[[], float] = time.time
) -> dict[str, Any]:
    """`query`: since and until (days or moments of UTC; the last 30 days without them), by, limit, cursor."""
    if unknown := [name for name in query if name not in _KNOWN]:
        raise BadRequest(f"{unknown[0]}: unknown; this route knows {', '.join(_KNOWN)}", unknown[0])
    until_s = _moment(query, "until", now())
    since_s = _moment(query, "since", (until_s // DAY_S - 30) * DAY_S)
    if not 0 < until_s - since_s <= MOST_DAYS * DAY_S:
        raise BadRequest(f"since: must lie before until, and at most {MOST_DAYS} days", "since")
    by, limit, cursor = _by(query), _limit(query), query.get("cursor")
    try:
        page = await asyncio.to_thread(
            usage_of, tenant_id, since_s=since_s, until_s=until_s, by=by, cursor=cursor, limit=limit
        )
    except ValueError as e:
        raise BadRequest(f"cursor: {e}", "cursor") from None
    return {
        "object": "list", "currency": currency, "since": _told(since_s), "until": _told(until_s),
        "data": [_group(row) for row in page.rows], "next_cursor": page.cursor, "has_more": page.cursor is not None,
    }  # fmt: skip


def _group(row: Any) -> dict[str, Any]:
    told = {name: value for name, value in asdict(row).items() if value is not None}
    return {"object": "usage", **told, "cost_millionths": told.pop("cost")}


def _moment(query: Mapping[str, str], name: str, default: float) -> float:
    """A day (its beginning, as 2026-11-25) or a moment (RFC 3339) as unix seconds."""
    if name not in query:
        return default
    try:
        moment = datetime.fromisoformat(query[name])
    except ValueError:
        raise BadRequest(f"{name}: write a day as 2026-11-25 or a moment as 2026-11-25T12:00:00Z", name) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _told(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).isoformat(timespec="seconds")


def _by(query: Mapping[str, str]) -> tuple[By, ...]:
    names = tuple(name for name in query.get("by", "day,model,key").split(",") if name)
    if len(set(names)) != len(names) or set(names) - set(get_args(By)):
        raise BadRequest(f"by: one or more of {', '.join(get_args(By))}, each once", "by")
    return cast(tuple[By, ...], names)


def _limit(query: Mapping[str, str]) -> int:
    given = query.get("limit", "100")
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= 1000:
        raise BadRequest("limit: a number between 1 and 1000", "limit")
    return int(given)
