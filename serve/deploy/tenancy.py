"""What one router replica has for its tenants: who they are, what they may hold, and the ledger. Joined here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from serve.accounts import Accounts
from serve.app import Beside
from serve.database import open_database
from serve.deploy.metrics import LedgerMetrics, LimitMetrics
from serve.engines.base import CountingEngine
from serve.ledger.entry import Entry
from serve.ledger.ledger import Ledger
from serve.ledger.recovery import keep_recovering, recover
from serve.ledger.usage import Spent, spent, usage
from serve.limitstore.opened import opened
from serve.logs import write_line
from serve.settings import Settings
from serve.tenants.development import open_store
from serve.tenants.directory import Tenants
from serve.tenants.following import follow
from serve.wire.usage import UsageOf
from serve.words import Counted, Level, Tenant

_TOLD_EVERY_S = 5.0


class Tenancy:
    """`engines`: by model. `replica`: the router's name. It blocks while it reads all tenants, once."""

    def __init__(self, settings: Settings, instance: Path, engines: Mapping[str, CountingEngine], replica: str) -> None:
        self._settings, self._engines = settings, engines
        self._store = open_store(settings.database, instance)
        self.tenants = Tenants(self._store.pepper)
        self.tenants.refresh(self._store)
        self._folder = instance / "ledger"
        self._database = open_database(settings.database.url_in(instance))
        self._ledger = Ledger(self._folder, replica, self._database, write_line)
        self._limits = opened(settings.limit_store, settings.name, LimitMetrics())
        self.accounts = Accounts(self._limits, self._ledger, self._spent)
        self.usage: UsageOf = partial(usage, self._database)

    def beside(self) -> list[Beside]:
        """What runs as long as the router does."""
        return [lambda: follow(self.tenants, self._store, write_line), self._write, self._recover]

    async def _write(self) -> None:
        """Ship the ledger, and at the end what is left of it."""
        metrics = LedgerMetrics()
        await asyncio.to_thread(self._ledger.start)
        try:
            while True:
                metrics(self._ledger.counters())
                await asyncio.sleep(_TOLD_EVERY_S)
        finally:
            await self._limits.close()
            await asyncio.to_thread(self._ledger.stop)

    async def _recover(self) -> None:
        """Close the rows of routers that died."""
        await keep_recovering(
            lambda: recover(self._folder, self._database, self._counted, self._forget, self._cost, time.time()),
            write_line,
        )

    async def _spent(self, tenant: Tenant, level: Level) -> Spent:
        return await asyncio.to_thread(spent, self._database, tenant, level, time.time())

    async def _counted(self, job_ids: Sequence[str]) -> Mapping[str, Counted]:
        found = dict[str, Counted]()
        for engine in self._engines.values():
            found |= await engine.counted(job_ids)
        return found

    async def _forget(self, job_ids: Sequence[str]) -> None:
        for engine in self._engines.values():
            await engine.forget(job_ids)

    def _cost(self, row: Entry) -> int:
        """By today's prices; a model that is no longer served costs what the row says."""
        names = {m.name: m for m in self._settings.models}
        names |= {a.name: m for m in self._settings.models for a in m.adapters}
        model = names.get(row.model)
        return row.cost if model is None else model.price.of(row.prompt_tokens, row.cached_tokens, row.output_tokens)
