"""Who was refused a moment ago for a reason that only time can lift: refused again, before the request is read."""

from __future__ import annotations

import time
from collections.abc import Callable

from serve.errors import LimitReached
from serve.words import Tenant

LONGEST_S = 1.0  # so old may what a refusal says be, and so late may a limit that was lifted take effect
_MOST = 10_000


class Refused:
    """By key, tenant or organisation, in this process. Time is the clock's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = dict[tuple[str, str], tuple[float, LimitReached]]()

    def note(self, tenant: Tenant, error: LimitReached) -> None:
        """Remember a refusal, if nothing but time lets the next request pass."""
        if error.only_time_s is None:
            return
        until = self._clock() + min(error.only_time_s, LONGEST_S)
        for level, account_id, _ in tenant.limits:
            if error.reason.startswith(f"{level}."):
                self._until[level, account_id] = until, error
        if len(self._until) > _MOST:
            now = self._clock()
            self._until = {who: at for who, at in self._until.items() if at[0] > now}

    def check(self, tenant: Tenant) -> None:
        """Raise the remembered refusal of whoever this request belongs to."""
        if not self._until:
            return
        for level, account_id, _ in tenant.limits:
            if (known := self._until.get((level, account_id))) is None:
                continue
            until, error = known
            if until > self._clock():
                raise type(error)(error.message, error.reason, error.retry_after_s, error.headers)
            del self._until[level, account_id]
