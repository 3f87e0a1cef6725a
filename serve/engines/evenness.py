"""How even the shares of those were who waited all the time. Pure: whoever uses it closes the windows."""

from __future__ import annotations

from collections.abc import Iterable

from serve.fairshare import jain


class Evenness:
    """Service by tenant in the window that is open.

    A tenant that had nothing waiting at some time does not count: it got all that it asked for.
    """

    def __init__(self) -> None:
        self._served = dict[str, float]()
        self._content = set[str]()

    def served(self, tenant: str, cost: float, weight: float) -> None:
        self._served[tenant] = self._served.get(tenant, 0.0) + cost / weight

    def content(self, tenant: str) -> None:
        """Nothing of this tenant waits, or it only began to wait now."""
        self._content.add(tenant)

    def close(self, waiting: Iterable[str]) -> float | None:
        """Jain's index over those who waited from the window's start to its end. None: fewer than two did.

        `waiting`: who waits now. The next window opens.
        """
        shares = [self._served.get(tenant, 0.0) for tenant in waiting if tenant not in self._content]
        self._served.clear()
        self._content.clear()
        return jain(shares) if len(shares) > 1 else None
