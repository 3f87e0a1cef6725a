"""Renews what the requests of this router hold: a hold lives as long as its answer, and a dead router's lapses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve.limitstore.base import Hold, LimitStore, StoreLost

_AT_ONCE = 50  # holds in one call: some milliseconds of the store's time and of the loop's


class Renewals:
    """The holds of answers on their way."""

    def __init__(self, limits: LimitStore, say: Callable[[str], None]) -> None:
        self._limits, self._say, self._held = limits, say, dict[str, Hold]()

    def add(self, hold: Hold) -> None:
        if hold.tenant.limits:
            self._held[hold.hold_id] = hold

    def drop(self, hold: Hold) -> None:
        """Its answer has ended: it is settled in a moment, or lapses."""
        self._held.pop(hold.hold_id, None)

    def __len__(self) -> int:
        return len(self._held)

    async def keep_renewing(self, every_s: float) -> None:
        """Beside the app, as long as it runs. What is lost is made up for the next time."""
        while True:
            await asyncio.sleep(every_s)
            held = list(self._held.values())
            for at in range(0, len(held), _AT_ONCE):
                await self._renew([hold for hold in held[at : at + _AT_ONCE] if hold.hold_id in self._held])
                await asyncio.sleep(0)  # requests come between

    async def _renew(self, holds: list[Hold]) -> None:
        try:
            await self._limits.renew(holds)
        except StoreLost:
            pass
        except Exception as e:  # nothing may end this task: then every hold would lapse
            self._say(f"holds could not be renewed ({type(e).__name__}); they are tried again before they lapse")
