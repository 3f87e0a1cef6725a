"""What happens when the shared store is lost: a deadline for each call, and a choice for each band of tenants.

After some lost calls in a row the store is left alone: no request waits for it, and a look in the background tells when
it is back. Meanwhile a band's choice holds: `open` lets pass, uncounted; `closed` refuses with 503; `local` counts in
this router's memory alone, so that R routers let pass R times the limit. Requests that run already go on in every band.
Charges of that time are kept and delivered when the store is back, each once; what must be dropped is told. Local
memory does not see what the store counts before and after: once the store answers again, all its accounts are unknown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import inf
from typing import Literal, NamedTuple, TypeVar

from serve.errors import LimitsUnavailable, ServeError
from serve.limit_settings import Loss
from serve.limits import NOTHING, Need, Used
from serve.limitstore.base import KEPT_S, Hold, LimitStore, StoreLost
from serve.limitstore.memory import MemoryLimitStore
from serve.words import Band, Level, Tenant

LossEvent = Literal[
    "call_lost",  # no answer within the deadline
    "opened", "closed",  # the breaker: the store is left alone, is asked again
    "passed_uncounted", "passed_local", "refused",  # what a request got instead
    "charge_kept", "charge_delivered", "charge_dropped",
]  # fmt: skip
Observe = Callable[[LossEvent, Band], None]  # once for each event; the band is of the request that it happened to
T = TypeVar("T")
_PARALLEL = 16  # charges delivered at once


class _Charge(NamedTuple):
    hold: Hold
    used: Used
    until_s: float


class GuardedLimitStore:
    """`shared`, and `local` in its place. Every verb answers within `deadline_s`, and none but `restore` raises
    StoreLost: it is asked again."""

    def __init__(
        self, shared: LimitStore, local: MemoryLimitStore, on_loss: Mapping[Band, Loss], observe: Observe, *,
        deadline_s: float = 0.1, failures: int = 3, probe_s: float = 1.0, kept: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._shared, self._local, self._on_loss, self._observe, self._clock = shared, local, on_loss, observe, clock
        self._deadline_s, self._failures, self._probe_s, self._kept_most = deadline_s, failures, probe_s, kept
        self._lost_in_a_row, self._open = 0, False
        self._local_counts = False  # it stood in since the store last answered
        self._kept = dict[str, _Charge]()  # by hold id, oldest first
        self._mending: asyncio.Task[None] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether the store is left alone now."""
        return self._open

    @property
    def charges_kept(self) -> int:
        return len(self._kept)

    async def reserve(self, hold_id: str, tenant: Tenant, need: Need) -> Hold:
        hold, asked = Hold(hold_id, tenant, need, need.output_tokens), not self._open
        try:
            return await self._ask(lambda: self._shared.reserve(hold_id, tenant, need), tenant.band)
        except StoreLost:
            pass
        except asyncio.CancelledError:
            self._keep(hold, NOTHING, tried=True)
            raise
        try:
            return await self._without_store(hold)
        except ServeError:
            if asked:  # The lost call may yet be carried out: this gives back what it holds, or comes before it.
                self._keep(hold, NOTHING, tried=True)
            raise

    async def _without_store(self, hold: Hold) -> Hold:
        band = hold.tenant.band
        match self._on_loss[band]:
            case "closed":
                self._observe("refused", band)
                raise LimitsUnavailable("the limits of this key cannot be checked now; try again soon")
            case "local":
                self._local_counts = True
                hold = await self._local.reserve(hold.hold_id, hold.tenant, hold.need)
                hold.counted_by = "local"
                self._observe("passed_local", band)
            case "open":
                hold.counted_by = "nobody"
                self._observe("passed_uncounted", band)
        return hold

    async def started(self, hold: Hold) -> None:
        """One that is lost is made up for when the hold is renewed, or by its settlement."""
        hold.is_queued = False
        if hold.counted_by == "local":
            await self._local.started(hold)
        elif hold.counted_by == "store":
            with suppress(StoreLost):
                await self._ask(lambda: self._shared.started(hold), hold.tenant.band)

    async def grow(self, hold: Hold, output_tokens: int, cost: int) -> bool:
        if hold.counted_by == "local":
            return await self._local.grow(hold, output_tokens, cost)
        if hold.counted_by == "store":
            with suppress(StoreLost):
                return await self._ask(lambda: self._shared.grow(hold, output_tokens, cost), hold.tenant.band)
        hold.output_tokens, hold.cost = output_tokens, cost  # it goes on, and is charged in the end
        return True

    async def renew(self, holds: Sequence[Hold]) -> None:
        """A call that is lost is made up for by the next one. A hold that was not counted is not held now either."""
        await self._local.renew([hold for hold in holds if hold.counted_by == "local"])
        if in_store := [hold for hold in holds if hold.counted_by == "store"]:
            with suppress(StoreLost):
                await self._ask(lambda: self._shared.renew(in_store), in_store[0].tenant.band)

    async def settle(self, hold: Hold, used: Used) -> None:
        if hold.counted_by == "local":
            await self._local.settle(hold, used)
        asked = not self._open
        try:
            await self._ask(lambda: self._shared.settle(hold, used), hold.tenant.band)
        except StoreLost:
            self._keep(hold, used, tried=asked)
        except asyncio.CancelledError:  # nobody knows how far the call came
            self._keep(hold, used, tried=True)
            raise

    async def restore(self, hold: Hold, level: Level, day_tokens: int, month_cost: int, at_us: int) -> None:
        sums = hold, level, day_tokens, month_cost, at_us
        if hold.counted_by == "local":
            await self._local.restore(*sums)
        try:
            await self._ask(lambda: self._shared.restore(*sums), hold.tenant.band)
        except StoreLost:
            if hold.counted_by != "local":
                raise

    async def ping(self) -> None:
        await self._in_time(self._shared.ping)

    async def close(self) -> None:
        """Deliver what is kept, if the store answers; what is left is told as dropped."""
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        await self._deliver()
        for hold_id in list(self._kept):
            self._drop(hold_id)
        await self._shared.close()
        await self._local.close()

    async def _ask(self, call: Callable[[], Awaitable[T]], band: Band) -> T:
        if self._open:
            raise StoreLost
        try:
            answer = await self._in_time(call)
        except StoreLost:
            self._note_lost(band)
            raise
        except ServeError:  # a refusal is an answer
            self._note_answer()
            raise
        self._note_answer()
        return answer

    async def _in_time(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await call()
        except TimeoutError:
            raise StoreLost from None

    def _note_answer(self) -> None:
        self._lost_in_a_row = 0
        if self._local_counts:
            self._local_counts = False
            self._local.unlearn()

    def _note_lost(self, band: Band) -> None:
        self._observe("call_lost", band)
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= self._failures and not self._open:
            self._open = True
            self._observe("opened", band)
            self._mend_soon()

    def _keep(self, hold: Hold, used: Used, *, tried: bool) -> None:
        """One that was tried may have been carried out: it is kept only while the store knows not to repeat it."""
        if hold.hold_id in self._kept:
            return
        self._kept[hold.hold_id] = _Charge(hold, used, self._clock() + KEPT_S if tried else inf)
        self._tell("charge_kept", self._kept[hold.hold_id])
        if len(self._kept) > self._kept_most:
            self._drop(next(iter(self._kept)))
        self._mend_soon()

    def _drop(self, hold_id: str) -> None:
        self._tell("charge_dropped", self._kept.pop(hold_id))

    def _tell(self, event: LossEvent, charge: _Charge) -> None:
        if charge.used != NOTHING:
            self._observe(event, charge.hold.tenant.band)

    def _mend_soon(self) -> None:
        if self._mending is None or self._mending.done():
            self._mending = asyncio.create_task(self._mend())

    async def _mend(self) -> None:
        """Look in the background until the store answers and has got every charge. No request waits for this."""
        while self._open or self._kept:
            await asyncio.sleep(self._probe_s)
            try:
                await self._in_time(self._shared.ping)
            except StoreLost:
                continue
            if await self._deliver() and self._open:
                self._open, self._lost_in_a_row = False, 0
                self._observe("closed", "standard")

    async def _deliver(self) -> bool:
        """False: the store was lost again."""
        while batch := list(islice(self._kept.values(), _PARALLEL)):
            if not all(await asyncio.gather(*map(self._deliver_one, batch))):
                return False
        return True

    async def _deliver_one(self, charge: _Charge) -> bool:
        if self._clock() >= charge.until_s:
            if charge.hold.hold_id in self._kept:
                self._drop(charge.hold.hold_id)
            return True
        try:
            await self._in_time(lambda: self._shared.settle(charge.hold, charge.used))
        except StoreLost:
            return False
        if self._kept.pop(charge.hold.hold_id, None) is not None:
            self._tell("charge_delivered", charge)
        return True
