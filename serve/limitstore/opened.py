"""The store that a configuration asks for: in memory for one router, a guarded Redis for several."""

from __future__ import annotations

from serve.limit_settings import LimitStore as Settings
from serve.limitstore.base import LimitStore
from serve.limitstore.breaker import GuardedLimitStore, Observe
from serve.limitstore.memory import MemoryLimitStore
from serve.words import BANDS, Secret


def opened(settings: Settings, deployment: str, observe: Observe) -> LimitStore:
    """Nothing is connected yet. `deployment`: its name; deployments with different names may share a Redis."""
    memory = MemoryLimitStore(settings.hold_s)
    if settings.redis_url is None:
        return memory
    from serve.limitstore.redis import RedisLimitStore  # one router alone needs no client of Redis

    deadline_s = settings.deadline_ms / 1000
    url, prefix = Secret(settings.redis_url.get_secret_value()), f"starserve:{deployment}:limits"
    shared = RedisLimitStore(url, prefix, deadline_s, settings.connections, settings.hold_s)
    on_loss = {band: getattr(settings.on_loss, band) for band in BANDS}
    return GuardedLimitStore(
        shared, memory, on_loss, observe, deadline_s=deadline_s, failures=settings.failures,
        probe_s=settings.probe_s, kept=settings.kept_settlements,
    )  # fmt: skip
