"""What runs beside the router's app lives as long as it, and no longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serve.app import build
from serve.engines.assembly import assemble
from serve.engines.fake import FakeEngine
from serve.model_settings import Queue
from serve.settings import parse
from tests.support.door import SETTINGS, known_tenants


async def test_what_runs_beside_starts_and_ends_with_the_app(words_folder: Path) -> None:
    told, started = list[str](), asyncio.Event()

    async def watch() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            told.append("ended")

    tenants, _ = known_tenants()
    engine = assemble(FakeEngine(), Queue(), 1, lambda tokens: None).receipts
    app = build(parse(SETTINGS), {"tiny": words_folder}, {"tiny": engine}, tenants, beside=[watch]).app
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(started.wait(), 5)
        assert told == []
    assert told == ["ended"]
