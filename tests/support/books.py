"""A door with accounts: real limits in memory, and a real ledger in SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve.database import migrate, open_database
from serve.ledger.ledger import Ledger
from serve.ledger.usage import rows
from tests.support.door import FORMS, SETTINGS, Door

PRICED = {"models": [{**SETTINGS["models"][0], "price": {"prompt": 1, "cached_prompt": "0.5", "output": 2}}]}
LONG = {"max_tokens": 200, "stream": True}
EVER = (0.0, 1e12)


class Books:
    """A door with accounts, and its ledger in SQLite."""

    def __init__(self, words_folder: Path, folder: Path, settings: Mapping[str, Any], **door: Any) -> None:
        self.database = open_database(f"sqlite:///{folder}/starserve.db")
        migrate(self.database)
        self.ledger = Ledger(folder / "journal", "router-0", self.database, print)
        self.ledger.start()
        self.door = Door(words_folder, settings, self.ledger, **door)
        self.accounts = self.door.accounts

    async def rows(self) -> list[dict[str, Any]]:
        """Everything so far, in order."""
        await self.accounts.quiet()
        assert await asyncio.to_thread(self.ledger.flush, 10)
        return list(rows(self.database, *EVER))

    async def leave(self, after: int, **changes: Any) -> None:
        """Ask for a long answer, and go away after so many tokens."""
        body = {"model": "tiny", **FORMS["/v1/completions"], **LONG, **changes}
        before = set(self.door.receipts._kept)
        self.door.engine.tpot_s = 0.005
        asked = asyncio.create_task(self.door.client.post("/v1/completions", json=body))
        async with asyncio.timeout(5):
            while self._made_besides(before) < after:  # noqa: ASYNC110 - the engine tells nobody
                await asyncio.sleep(0.001)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    def _made_besides(self, before: set[str]) -> int:
        kept = self.door.receipts._kept
        return sum(counted.usage.completion_tokens for job_id, counted in kept.items() if job_id not in before)

    def close(self) -> None:
        self.ledger.stop()
        self.database.dispose()


Open = Callable[..., Books]
