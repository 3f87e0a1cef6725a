"""Close the rows that dead routers left open, with what this router's engines tell of their jobs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from serve.engines.base import CountingEngine
from serve.ledger.entry import Entry
from serve.ledger.ledger import Ledger
from serve.ledger.recovery import keep_recovering, recover
from serve.logs import write_line
from serve.model_settings import Model
from serve.words import Counted


class Recovery:
    """Of the routers that write into the folder of this router's ledger."""

    def __init__(self, models: Sequence[Model], engines: Mapping[str, CountingEngine], ledger: Ledger) -> None:
        self._engines, self._ledger = engines, ledger
        self._prices = {name: m.price for m in models for name in (m.name, *(a.name for a in m.adapters))}

    async def keep_recovering(self) -> None:
        """Look for rows of dead routers for ever."""
        ledger = self._ledger
        await keep_recovering(
            lambda: recover(ledger.folder, ledger.database, self._counted, self._forget, self._cost, time.time()),
            write_line,
        )

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
        price = self._prices.get(row.model)
        return row.cost if price is None else price.of(row.prompt_tokens, row.cached_tokens, row.output_tokens)
