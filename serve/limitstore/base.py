"""Where is counted what tenants hold: the verbs of every store, and what they agree on.

The life of a hold: `reserve` before dispatch, `started` at the first token, `grow` when more is made than was held, and
`settle` in `finally`, whatever happened. One who settles nothing leaves a hold that expires.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from serve.limits import EMPTY, Need, Standing, Used
from serve.words import Level, Tenant

HOLD_S = 900.0  # a hold that nobody renews vanishes; `started` and `grow` renew
KEPT_S = 3600.0  # how long a settled hold is remembered, so that settling it twice charges once

CountedBy = Literal["store", "local", "nobody"]


class StoreLost(Exception):
    """The store did not answer; what it was asked to do may or may not have been done. Never seen by a client."""


@dataclass(slots=True)
class Hold:
    """What one request holds. `output_tokens`: as held now, `need`: as first asked for."""

    hold_id: str
    tenant: Tenant
    need: Need
    output_tokens: int
    standing: Standing = EMPTY
    counted_by: CountedBy = "store"
    unknown: tuple[Level, ...] = ()  # levels of which the store knew nothing: ask the ledger, and `restore`


class LimitStore(Protocol):
    """Counts at every level that `tenant.limits` names, also where nothing is limited: a limit set at noon knows the
    morning. Any verb may raise StoreLost."""

    async def reserve(self, hold_id: str, tenant: Tenant, need: Need) -> Hold:
        """Hold the need at all levels, or raise LimitReached and hold nothing. Ids are never used twice."""
        ...

    async def started(self, hold: Hold) -> None:
        """The first token came: the request waits no more."""
        ...

    async def grow(self, hold: Hold, output_tokens: int, cost: int) -> bool:
        """Hold so many output tokens, and so much cost, in all. False, and nothing changes: the day's tokens or the
        month's budget are used up, so end the answer. Limits per minute never end one; they go into debt."""
        ...

    async def settle(self, hold: Hold, used: Used) -> None:
        """Charge what was used and give back the rest, once; a second call does nothing. Charges even if the store
        has forgotten the hold."""
        ...

    async def restore(self, hold: Hold, level: Level, day_tokens: int, month_cost: int) -> None:
        """What the ledger knows of this day and month: a counter that is lower is lifted to it. A store in memory
        knows nothing after a restart, nor does a Redis that lost its data."""
        ...

    async def ping(self) -> None:
        """Nothing, if the store answers."""
        ...

    async def close(self) -> None: ...
