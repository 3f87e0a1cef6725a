"""A town to be attacked: two tenants of two organisations behind one whole router, with books, logs and a real socket.

Alice is the victim and Mallory the attacker. The engine is the deterministic one, in a replica joined as
the deployments join it. `sizes` counts whatever could grow or leak.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import uvicorn

from serve.app import build
from serve.database import migrate, open_database
from serve.engines.assembly import assemble
from serve.engines.fake import FakeEngine
from serve.ledger.ledger import Ledger
from serve.ledger.usage import rows
from serve.limitstore.memory import MemoryLimitStore
from serve.logs import log_json, log_text
from serve.made import Made
from serve.record import Record
from serve.settings import parse
from serve.tenants import keys
from serve.tenants.directory import Tenants
from serve.tenants.rows import KeyRow, OrganisationRow, SecretRow, TenantRow
from serve.words import Limits, Secret
from tests.support.door import FORMS, SETTINGS

PRICED = {**SETTINGS, "models": [{**SETTINGS["models"][0], "price": {"prompt": 1, "output": 2}}]}
COUNTED: dict[str, Any] = {"limits": Limits(tokens_per_day=10**9, concurrent_requests=10**6, queued_tokens=10**9,
                            requests_per_minute=10**6, tokens_per_minute=10**9, budget_per_month=10**12)}  # fmt: skip
PEPPER = Secret("p" * 64)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


class Town:
    """`alice` and `mallory` are the texts of their keys; their rows' fields are given by name."""

    def __init__(
        self, words_folder: Path, folder: Path, settings: Mapping[str, Any] = PRICED, *,
        alice: Mapping[str, Any] = MappingProxyType({}), mallory: Mapping[str, Any] = COUNTED,
        mallory_key: Mapping[str, Any] = COUNTED, places: int = 4,
    ) -> None:  # fmt: skip
        opened = {name: (keys.new_key_id(), keys.new_secret()) for name in ("alice", "mallory")}
        self.alice, self.mallory = (keys.text_of(*opened[n]).reveal() for n in ("alice", "mallory"))
        self.key_ids = {name: key_id for name, (key_id, _) in opened.items()}
        self.rows = (
            [OrganisationRow("a-org"), OrganisationRow("m-org", COUNTED["limits"])],
            [
                TenantRow("alice", "a-org", **alice),
                TenantRow("mallory", "m-org", **mallory),
            ],
            [
                KeyRow(key_id, name, "key", (SecretRow(keys.digest(PEPPER, secret)),), **(mallory_key if n else {}))
                for n, (name, (key_id, secret)) in enumerate(opened.items())
            ],
        )
        self.tenants = Tenants(PEPPER, *self.rows)
        parsed = parse(settings)
        self.folder = folder
        self.engine, self.records = FakeEngine(), list[Record]()
        self.made = Made(folder / "made", "engine-0", print)
        queue = parsed.models[0].engine.queue
        self.receipts, self.turns = assemble(self.engine, queue, places, self.made.add)
        self.database = open_database(f"sqlite:///{folder}/starserve.db")
        migrate(self.database)
        self.ledger = Ledger(folder / "journal", "router-0", self.database, print)
        self.ledger.start()
        folders = {m.name: words_folder for m in parsed.models}
        engines = {m.name: self.receipts for m in parsed.models}
        router = build(parsed, folders, engines, self.tenants, self.ledger, observe=self._observe)
        self.app: Any = router.app
        self.accounts = router.accounts
        assert isinstance(router.limits, MemoryLimitStore)
        self.store = router.limits
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def _observe(self, record: Record) -> None:
        """Both styles of log, on the process's own standard error."""
        self.records.append(record)
        log_json(record)
        log_text(record)

    async def ask(self, key: str, path: str = "/v1/completions", **changes: Any) -> httpx.Response:
        body = {"model": "tiny", **FORMS[path], "max_tokens": 4, **changes}
        return await self.client.post(path, json=body, headers={"Authorization": f"Bearer {key}"})

    async def get(self, path: str, key: str | None, *headers: tuple[str, str]) -> httpx.Response:
        known = [("Authorization", f"Bearer {key}")] if key is not None else []
        return await self.client.get(path, headers=[*known, *headers])

    async def ledger_rows(self) -> list[dict[str, Any]]:
        await self.accounts.quiet()
        assert await asyncio.to_thread(self.ledger.flush, 20)
        return list(rows(self.database, 0.0, 1e12))

    async def sizes(self) -> dict[str, int]:
        """All of it is 0 in a town where nothing runs."""
        await self.accounts.quiet()
        books = self.store._books.values()
        return {
            "running": sum(b.account.running for b in books), "holds": sum(len(b.holds) for b in books),
            "held_tokens": sum(b.account.held_tokens for b in books),
            "queued": sum(b.account.held_queued for b in books),
            "held_cost": sum(b.account.held_cost for b in books), "records": len(self.store._records),
            "engine": len(self.engine.running), "waiting": self.turns.waiting, "at_work": self.turns.at_work,
            "claims": len(self.turns._waiting), "open_rows": self.ledger.counters().open,
            "unfinished": sum(not counted.finished for counted in self.receipts._kept.values()),
        }  # fmt: skip

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The same router on a port of loopback, behind a real HTTP server."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", lifespan="off"))
            serving = asyncio.create_task(server.serve([listener]))
            while not server.started:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            yield listener.getsockname()[1]
            server.should_exit = True
            await serving

    async def close(self) -> None:
        await self.client.aclose()
        await self.accounts.quiet()
        await asyncio.to_thread(self.ledger.stop)
        self.database.dispose()


async def raw(port: int, head: bytes, body: bytes = b"") -> Answer:
    """What a server answers to exactly these bytes; status 0 where it answers nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + body)
    await writer.drain()
    told = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    first, _, rest = told.decode("latin-1").partition("\r\n")
    shown, _, text = rest.partition("\r\n\r\n")
    pairs = [line.partition(": ") for line in shown.split("\r\n")]
    status = first.split(" ")[1] if " " in first else "0"
    return Answer(int(status), {name.lower(): value for name, _, value in pairs}, text)


def head(target: str, headers: Sequence[tuple[str, str]] = (), method: str = "GET", host: str = "test") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
    return "\r\n".join([*lines, *(f"{n}: {v}" for n, v in headers), "", ""]).encode("latin-1")
