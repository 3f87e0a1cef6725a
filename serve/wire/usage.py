"""What was used: a tenant's own at GET /v1/usage, and nobody sees another's; everybody's at the admin API."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol, cast, get_args

from starlette.datastructures import QueryParams

from serve.errors import BadRequest
from serve.ledger.usage import By, Page
from serve.threads import Threads

DAY_S = 86_400
MOST_DAYS = 366
_LAST_S = 253_370_764_800.0  # 9999-01-01
_KNOWN = ("since", "until", "by", "limit", "cursor")
_OWN: tuple[By, ...] = ("day", "model", "key")
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


class UsageOf(Protocol):
    """Reads the ledger. It blocks."""

    def __call__(
        self, tenant_id: str | None, since_s: float, until_s: float, by: Sequence[By], cursor: str | None, limit: int,
        organisation_id: str | None = None,
    ) -> Page: ...  # fmt: skip


def once(given: QueryParams) -> dict[str, str]:
    """A query as names and values; BadRequest for a name that stands there twice, which two readers may read apart."""
    query = dict[str, str]()
    for name, value in given.multi_items():
        if name in query:
            raise BadRequest(f"{name[:100]}: stands in the query twice", name[:100])
        query[name] = value
    return query


def report_threads() -> Threads:
    """Make the threads that read the ledger for tenants: few at a time, apart from what keys and limits depend on."""
    return Threads(2, "report", most=4)


async def usage_page(
    usage_of: UsageOf, threads: Threads, tenant_id: str, query: Mapping[str, str], currency: str
) -> dict[str, Any]:
    """`query`: since and until (days or moments of UTC; the last 30 days without them), by, limit, cursor."""

    def asked(**wanted: Any) -> Awaitable[Page]:
        return threads.run(tenant_id, usage_of, tenant_id, **wanted)

    return await _page(asked, query, _KNOWN, _OWN, "day,model,key", currency)


async def everybodys_page(
    usage_of: UsageOf, threads: Threads, query: Mapping[str, str], currency: str
) -> dict[str, Any]:
    """For administrators: `tenant` and `organisation` besides, each to see it alone or to group by it."""
    ids = {name: query.get(name) for name in ("tenant", "organisation")}
    for name, value in ids.items():
        if value is not None and not _ID.match(value):
            raise BadRequest(f"{name}: an id", name)

    def asked(**wanted: Any) -> Awaitable[Page]:
        return threads.run("", usage_of, ids["tenant"], organisation_id=ids["organisation"], **wanted)

    return await _page(asked, query, (*ids, *_KNOWN), get_args(By), "day,organisation,tenant,model", currency)


async def _page(
    asked: Callable[..., Awaitable[Page]], query: Mapping[str, str], known: Sequence[str], groups: tuple[By, ...],
    by: str, currency: str,
) -> dict[str, Any]:  # fmt: skip
    if unknown := [name for name in query if name not in known]:
        named = unknown[0][:100]
        raise BadRequest(f"{named}: unknown; this route knows {', '.join(known)}", named)
    until_s = _moment(query, "until", time.time())
    since_s = _moment(query, "since", max(0.0, (until_s // DAY_S - 30) * DAY_S))
    if not 0 < until_s - since_s <= MOST_DAYS * DAY_S:
        raise BadRequest(f"since: must lie before until, and at most {MOST_DAYS} days", "since")
    wanted: dict[str, Any] = {"by": _by(query.get("by", by), groups), "limit": _limit(query)}
    try:
        page = await asked(since_s=since_s, until_s=until_s, cursor=query.get("cursor"), **wanted)
    except ValueError as e:
        raise BadRequest(f"cursor: {e}", "cursor") from None
    return {
        "object": "list", "currency": currency, "since": _told(since_s), "until": _told(until_s),
        "data": [_group(row) for row in page.rows], "next_cursor": page.cursor, "has_more": page.cursor is not None,
    }  # fmt: skip


def _group(row: Any) -> dict[str, Any]:
    told = {name: value for name, value in asdict(row).items() if value is not None}
    cost = told.pop("cost")
    return {"object": "usage", **told, "cost_millionths": cost}


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


def _by(given: str, groups: tuple[By, ...]) -> tuple[By, ...]:
    names = tuple(name for name in given.split(",") if name)
    if len(set(names)) != len(names) or set(names) - set(groups):
        raise BadRequest(f"by: one or more of {', '.join(groups)}, each once", "by")
    return cast(tuple[By, ...], names)


def _limit(query: Mapping[str, str]) -> int:
    given = query.get("limit", "100")
    if not given.isascii() or not given.isdigit() or not 1 <= int(given) <= 1000:
        raise BadRequest("limit: a number between 1 and 1000", "limit")
    return int(given)
