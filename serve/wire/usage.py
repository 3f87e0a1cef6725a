"""GET /v1/usage: what the tenant of a key has used, by day, model and key. Nobody sees another tenant's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol, cast, get_args

from starlette.datastructures import QueryParams

from serve.errors import BadRequest
from serve.ledger.usage import By, Page

DAY_S = 86_400
MOST_DAYS = 366
_LAST_S = 253_370_764_800.0  # 9999-01-01
_KNOWN = ("since", "until", "by", "limit", "cursor")


class UsageOf(Protocol):
    """Reads the ledger. It blocks."""

    def __call__(
        self, tenant_id: str, since_s: float, until_s: float, by: Sequence[By], cursor: str | None, limit: int
    ) -> Page: ...


def once(given: QueryParams) -> dict[str, str]:
    """A query as names and values; BadRequest for a name that stands there twice, which two readers may read apart."""
    for name in given:
        if len(given.getlist(name)) > 1:
            raise BadRequest(f"{name[:100]}: stands in the query twice", name[:100])
    return dict(given)


async def usage_page(
    usage_of: UsageOf, tenant_id: str, query: Mapping[str, str], currency: str, now: Callable[[], float] = time.time
) -> dict[str, Any]:
    """`query`: since and until (days or moments of UTC; the last 30 days without them), by, limit, cursor."""
    if unknown := [name for name in query if name not in _KNOWN]:
        named = unknown[0][:100]
        raise BadRequest(f"{named}: unknown; this route knows {', '.join(_KNOWN)}", named)
    until_s = _moment(query, "until", now())
    since_s = _moment(query, "since", max(0.0, (until_s // DAY_S - 30) * DAY_S))
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
        moment_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest(f"{name}: write a day as 2026-11-25 or a moment as 2026-11-25T12:00:00Z", name) from None
    if not 0 <= moment_s < _LAST_S:
        raise BadRequest(f"{name}: lies between 1970 and 9999", name)
    return moment_s


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
