"""What tenants hold, in one Redis that all routers share. One round trip for each verb: one atomic script.

Keys: `PREFIX:{SLOT}:hold:ID`, `PREFIX:{SLOT}:LEVEL:ID:sums`, `…:holds`, `…:expiries`. SLOT is the organisation, or the
tenant without one: all that one request touches lies in one slot of a Redis cluster, and organisations spread over the
slots. Every key has a time to live. Redis must not evict (`maxmemory-policy noeviction`): what it evicts was not used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from serve.limits import Account, Need, Used, refusal_error, refusals, standing
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
        hold.is_queued = False
        await self._call("started", hold.hold_id, hold.tenant)

    async def grow(self, hold: Hold, output_tokens: int, cost: int) -> bool:
        tokens = hold.need.prompt_tokens + output_tokens
        status, _, _ = await self._call("grow", hold.hold_id, hold.tenant, tokens=tokens, cost=cost)
        if status == "done":
            hold.output_tokens, hold.cost = output_tokens, cost
        return status == "done"

    async def renew(self, holds: Sequence[Hold]) -> None:
        """All at once; one script for those that lie in the same accounts."""
        alike = dict[tuple[str, ...], list[Hold]]()
        for hold in holds:
            if hold.tenant.limits:
                alike.setdefault(tuple(self._accounts(hold.tenant)), []).append(hold)
        if not alike:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for accounts, of_them in alike.items():
                    tenant = of_them[-1].tenant
                    ask = self._ask(
                        "renew",
                        tenant,
                        holds=[
                            {
                                "id": h.hold_id,
                                "queued": h.tokens if h.is_queued else 0,
                                "tokens": h.tokens,
                                "cost": h.cost,
                            }
                            for h in of_them
                        ],
                    )
                    records = [self._record(h.tenant, h.hold_id) for h in of_them]
                    await self._script([*accounts, *records], [ask], client=pipe)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as e:
            raise StoreLost(type(e).__name__) from None

    async def settle(self, hold: Hold, used: Used) -> None:
        await self._call("settle", hold.hold_id, hold.tenant, **used._asdict())

    async def restore(self, hold: Hold, level: Level, day_tokens: int, month_cost: int, at_us: int) -> None:
        number = [name for name, _, _ in hold.tenant.limits].index(level) + 1
        told = {"level": number, "tokens": day_tokens, "cost": month_cost, "at_us": at_us}
        await self._call("restore", hold.hold_id, hold.tenant, **told)

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
        if not tenant.limits:
            return "done", 0, []
        keys = [*self._accounts(tenant), self._record(tenant, hold_id)]
        try:
            status, told_us, *accounts = await self._script(keys, [self._ask(verb, tenant, hold_id=hold_id, **numbers)])
        except (RedisError, OSError, TimeoutError) as e:
            # The type alone: a message may hold the address.
            raise StoreLost(type(e).__name__) from None
        return status, int(told_us), [Account(*map(int, sums)) for sums in accounts]

    def _ask(self, verb: str, tenant: Tenant, **what: Any) -> str:
        clock = {"now_us": self._clock_us()} if self._clock_us else {}
        limits = [_given(limits) for _, _, limits in tenant.limits]
        return json.dumps({"verb": verb, "limits": limits, **self._always, **clock, **what})

    def _accounts(self, tenant: Tenant) -> Iterable[str]:
        here = self._slot(tenant)
        for level, account_id, _ in tenant.limits:
            yield from (f"{here}:{level}:{account_id}:{part}" for part in ("sums", "holds", "expiries"))

    def _record(self, tenant: Tenant, hold_id: str) -> str:
        return f"{self._slot(tenant)}:hold:{hold_id}"

    def _slot(self, tenant: Tenant) -> str:
        slot = f"o:{tenant.organisation_id}" if tenant.organisation_id else f"t:{tenant.tenant_id}"
        return f"{self._prefix}:{{{slot}}}"


def _given(limits: Limits) -> dict[str, int]:
    """Only what is limited: JSON's null is a value in Lua."""
    return {name: value for name, value in asdict(limits).items() if value is not None}
