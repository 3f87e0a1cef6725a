"""Who was refused a moment ago for a reason that only time can lift: refused again, before the request is read.

So is a key whose bodies were refused too often: each was read and looked at for nothing, and counts against no limit of
requests or tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from serve.errors import BadRequest, BodyTooLarge, BodyTooSlow, LimitReached, ServeError, UnknownModel
from serve.words import Tenant

LONGEST_S = 1.0  # so old may what a refusal says be, and so late may a limit that was lifted take effect
_MOST = 10_000
_BODY_BYTES = 1 << 16  # a larger body counts as several


class Refused:
    """By key, tenant or organisation, in this process. Time is the clock's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, bodies_per_minute: int = 600) -> None:
        self._clock, self._bodies_per_minute = clock, bodies_per_minute
        self._until = dict[tuple[str, str], tuple[float, LimitReached]]()
        self._bodies_until = dict[str, float]()  # by key: when its refused bodies are forgotten

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

    def note_body(self, tenant: Tenant, error: ServeError, body_bytes: int) -> None:
        """Count a body that was refused for what it says, or for how it came."""
        if not isinstance(error, BadRequest | BodyTooLarge | BodyTooSlow | UnknownModel):
            return
        now = self._clock()
        each_s = 60 / self._bodies_per_minute
        until = max(now, self._bodies_until.get(tenant.key_id, now)) + each_s * (1 + body_bytes // _BODY_BYTES)
        self._bodies_until[tenant.key_id] = until
        if len(self._bodies_until) > _MOST:
            self._bodies_until = {key_id: at for key_id, at in self._bodies_until.items() if at > now}

    def _check_bodies(self, tenant: Tenant) -> None:
        wait_s = self._bodies_until.get(tenant.key_id, 0.0) - self._clock() - 60
        if wait_s > 0:
            raise LimitReached(
                f"{self._bodies_per_minute} requests of this key were refused within a minute for what they say; "
                f"the next is read in {math.ceil(wait_s)} s",
                "key.refused_bodies",
                math.ceil(wait_s),
                {},
            )

    def check(self, tenant: Tenant) -> None:
        """Raise the remembered refusal of whoever this request belongs to."""
        if self._bodies_until:
            self._check_bodies(tenant)
        if not self._until:
            return
        for level, account_id, _ in tenant.limits:
            if (known := self._until.get((level, account_id))) is None:
                continue
            until, error = known
            if until > self._clock():
                raise type(error)(error.message, error.reason, error.retry_after_s, error.headers)
            del self._until[level, account_id]
