"""What tenants hold, in one Redis that all routers share. One round trip for each verb: one atomic script.

Keys: `PREFIX:{SLOT}:hold:ID`, `PREFIX:{SLOT}:LEVEL:ID:sums`, `…:holds`, `…:expiries`. SLOT is the organisation, or the
tenant without one: all that one request touches lies in one slot of a Redis cluster, and organisations spread over the
slots. Every key has a time to live. Redis must not evict (`maxmemory-policy noeviction`): what it evicts was not used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from serve.limits import Account, Need, Used, month_ends_us, refusal_error, refusals, standing
from serve.limitstore.base import HOLD_S, KEPT_S, Hold, StoreLost
from serve.words import Level, Limits, Secret, Tenant

SCRIPT = files("serve.limitstore").joinpath("limits.lua").read_text(encoding="utf-8")


class RedisLimitStore:
    """`timeout_s` bounds each step of a call; nothing is tried twice. `clock_us`: in tests, instead of Redis's own."""

    def __init__(
        self, url: Secret, prefix: str, timeout_s: float, connections: int = 64, hold_s: float = HOLD_S,
        kept_s: float = KEPT_S, clock_us: Callable[[], int] | None = None,
    ) -> None:  # fmt: skip
        # With maintenance notifications, on by default, redis-py 8.1 hands out connections that have ended: after a
        # restart of Redis each of them would cost a request its call.
        pool = BlockingConnectionPool.from_url(
            url.reveal(), max_connections=connections, timeout=timeout_s, socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0), decode_responses=True,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )  # fmt: skip
        self._redis = Redis(connection_pool=pool)
        self._script = self._redis.register_script(SCRIPT)
        self._prefix, self._clock_us = prefix, clock_us
        self._always = {"hold_us": round(hold_s * 1e6), "kept_us": round(kept_s * 1e6)}

    async def reserve(self, hold_id: str, tenant: Tenant, need: Need) -> Hold:
        status, now_us, accounts = await self._call("reserve", hold_id, tenant, tokens=need.tokens, cost=need.cost)
        if status == "settled":
            raise ValueError("a settled hold cannot be reserved again")
        stands = standing(((limits, a) for (_, _, limits), a in zip(tenant.limits, accounts, strict=True)), now_us)
        if status == "refused":
            found = [
                refusal
                for (level, _, limits), account in zip(tenant.limits, accounts, strict=True)
                for refusal in refusals(level, limits, account, need, now_us)
            ]
            raise refusal_error(found, stands)
        unknown = tuple(level for (level, _, _), a in zip(tenant.limits, accounts, strict=True) if not a.known)
        return Hold(hold_id, tenant, need, need.output_tokens, stands, unknown=unknown)

    async def started(self, hold: Hold) -> None:
        await self._call("started", hold.hold_id, hold.tenant)

    async def grow(self, hold: Hold, output_tokens: int, cost: int) -> bool:
        tokens = hold.need.prompt_tokens + output_tokens
        status, _, _ = await self._call("grow", hold.hold_id, hold.tenant, tokens=tokens, cost=cost)
        if status == "done":
            hold.output_tokens = output_tokens
        return status == "done"

    async def settle(self, hold: Hold, used: Used) -> None:
        await self._call("settle", hold.hold_id, hold.tenant, **used._asdict())

    async def restore(self, hold: Hold, level: Level, day_tokens: int, month_cost: int) -> None:
        at = [name for name, _, _ in hold.tenant.limits].index(level) + 1
        await self._call("restore", hold.hold_id, hold.tenant, at=at, tokens=day_tokens, cost=month_cost)

    async def ping(self) -> None:
        try:
            await self._redis.ping()
        except (RedisError, OSError, TimeoutError) as e:
            raise StoreLost(type(e).__name__) from None

    async def memory_bytes(self) -> int:
        """What Redis uses now, for everybody."""
        return int((await self._redis.info("memory"))["used_memory"])

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _call(self, verb: str, hold_id: str, tenant: Tenant, **numbers: int) -> tuple[str, int, list[Account]]:
        now_us = self._clock_us() if self._clock_us else None
        if not tenant.limits:
            return "done", 0, []
        ask: dict[str, Any] = {
            "verb": verb, "hold_id": hold_id, "limits": [_given(limits) for _, _, limits in tenant.limits],
            "month_ends_us": month_ends_us(now_us or time.time_ns() // 1000), **self._always, **numbers,
        }  # fmt: skip
        if now_us is not None:
            ask["now_us"] = now_us
        try:
            status, told_us, *accounts = await self._script(self._keys(hold_id, tenant), [json.dumps(ask)])
        except (RedisError, OSError, TimeoutError) as e:
            # The type alone: a message may hold the address.
            raise StoreLost(type(e).__name__) from None
        return status, int(told_us), [Account(*map(int, sums)) for sums in accounts]

    def _keys(self, hold_id: str, tenant: Tenant) -> list[str]:
        slot = f"o:{tenant.organisation_id}" if tenant.organisation_id else f"t:{tenant.tenant_id}"
        here = f"{self._prefix}:{{{slot}}}"
        keys = [f"{here}:hold:{hold_id}"]
        for level, account_id, _ in tenant.limits:
            keys += [f"{here}:{level}:{account_id}:{part}" for part in ("sums", "holds", "expiries")]
        return keys


def _given(limits: Limits) -> dict[str, int]:
    """Only what is limited: JSON's null is a value in Lua."""
    return {name: value for name, value in asdict(limits).items() if value is not None}
