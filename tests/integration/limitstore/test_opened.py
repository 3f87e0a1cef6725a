"""The store that a configuration asks for."""

from __future__ import annotations

from typing import Any

from serve.limit_settings import LimitStore
from serve.limits import Used
from serve.limitstore.breaker import GuardedLimitStore
from serve.limitstore.memory import MemoryLimitStore
from serve.limitstore.opened import opened
from serve.settings import parse
from serve.words import Limits
from tests.support.limit_stores import need, tenant
from tests.support.servers import Redis

MODEL: dict[str, Any] = {"name": "m", "source": {"folder": "/nowhere"}, "context_tokens": 512, "engine": {}}


def test_without_a_url_limits_are_counted_in_memory() -> None:
    assert isinstance(opened(LimitStore(), "d", lambda *_: None), MemoryLimitStore)


async def test_with_a_url_deployments_share_a_redis_and_no_counts(redis_server: Redis) -> None:
    settings = LimitStore.model_validate({"redis_url": redis_server.url, "deadline_ms": 5000})
    stores = [opened(settings, name, lambda *_: None) for name in ("one", "one", "other")]
    assert isinstance(stores[0], GuardedLimitStore)
    who = tenant(key=Limits(tokens_per_day=100))
    await stores[0].settle(await stores[0].reserve("a", who, need()), Used(30))
    left = []
    for i, store in enumerate(stores):
        await store.ping()
        tokens = (await store.reserve(f"asks-{i}", who, need(0, 0))).standing.tokens
        assert tokens
        left.append(tokens.remaining)
        await store.close()
    assert left == [70, 70, 100]


def test_a_url_with_a_password_is_not_printed_and_prices_are_exact() -> None:
    store = {"redis_url": "redis://:canary@r/0", "on_loss": {"standard": "open"}}
    price = {"prompt": 0.1, "output": "0.3"}
    settings = parse({"limit_store": store, "currency": "EUR", "models": [{**MODEL, "price": price}]})
    assert "canary" not in repr(settings) + str(settings.model_dump(mode="json"))
    assert settings.limit_store.on_loss.standard == "open"
    assert settings.models[0].price.of(10, 0, 30) == 10  # 1 + 9: no binary fractions
