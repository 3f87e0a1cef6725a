"""Where is counted what tenants hold: the verbs of every store, and what they agree on.

The life of a hold: `reserve` before dispatch, `started` at the first token, `grow` when more is made than was held, and
`settle` in `finally`, whatever happened. Meanwhile its router renews it: a hold lives as long as its answer, and one of
a dead router expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from serve.limits import EMPTY, Need, Standing, Used
from serve.words import Level, Tenant

HOLD_S = 120.0  # a hold vanishes unless its router renews it; `renew`, `started` and `grow` do
KEPT_S = 3600.0  # how long a settled hold is remembered, so that settling it twice charges once

CountedBy = Literal["store", "local", "nobody"]


class StoreLost(Exception):
    """The store did not answer; what it was asked to do may or may not have been done. Never seen by a client."""


@dataclass(slots=True)
class Hold:
    """What one request holds. `output_tokens` and `cost`: as held now, `need`: as first asked for."""

    hold_id: str
    tenant: Tenant
    need: Need
    output_tokens: int
    standing: Standing = EMPTY
    counted_by: CountedBy = "store"
    unknown: tuple[Level, ...] = ()  # levels of which the store knows nothing: ask the ledger, and `restore`
    cost: int = -1  # -1: as first asked for
    is_queued: bool = True  # no token came yet

    def __post_init__(self) -> None:
        if self.cost < 0:
            self.cost = self.need.cost

    @property
    def tokens(self) -> int:
        return self.need.prompt_tokens + self.output_tokens


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

    async def renew(self, holds: Sequence[Hold]) -> None:
        """These requests are still on their way: their holds live on, as large as they are. One that the store has
        forgotten, or that lapsed, is held again, without asking whether it fits; one that is settled stays so. Some
        hundred at once: a store is busy with them for milliseconds."""
        ...

    async def settle(self, hold: Hold, used: Used) -> None:
        """Charge what was used and give back the rest, once; a second call does nothing. Charges even if the store
        has forgotten the hold."""
        ...

    async def restore(self, hold: Hold, level: Level, day_tokens: int, month_cost: int, at_us: int) -> None:
        """What the ledger knew at `at_us` of that day and month: a counter that is lower is lifted to it, and the level
        is known from now on. A store in memory knows nothing after a restart, nor does a Redis that lost its data;
        until this is done, `reserve` says so each time. Sums of other windows than the store's own are not taken."""
        ...

    async def ping(self) -> None:
        """Nothing, if the store answers."""
        ...

    async def close(self) -> None: ...
