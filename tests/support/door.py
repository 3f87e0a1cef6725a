"""The public door, with the deterministic engine behind it. Whatever leaves it is judged by OpenAI's own schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from serve.app import build
from serve.engines.assembly import assemble
from serve.engines.base import CountingEngine
from serve.engines.fake import FakeEngine
from serve.ledger.ledger import Ledger
from serve.record import Record
from serve.settings import parse
from serve.tenants import keys
from serve.tenants.directory import Tenants
from serve.tenants.rows import KeyRow, OrganisationRow, SecretRow, TenantRow
from serve.words import Secret
from tests.support.openai_schema import assert_openai_shape

FORMS: dict[str, dict[str, Any]] = {
    "/v1/instruct": {"instruction": "Sort."},
    "/v1/completions": {"prompt": "def f("},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Sort."}]},
    "/v1/fim/completions": {"prompt": "def f(", "suffix": "return x"},
}
SETTINGS = {
    "models": [
        {"name": "tiny", "source": {"folder": "/nowhere"}, "context_tokens": 512, "engine": {"device": "cpu"}}
    ]
}  # fmt: skip


MANY = 1000  # sequences: more than any test has at work
KEY_ID = keys.new_key_id()  # the same for every door: a router that starts again knows its keys


def known_tenants(
    organisation: Mapping[str, Any] = MappingProxyType({}),
    tenant: Mapping[str, Any] = MappingProxyType({}),
    key: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Tenants, str]:
    """A tenant `development` in memory, and its key; with these fields of the three rows."""
    pepper, secret = Secret("p" * 64), keys.new_secret()
    opening = KeyRow(KEY_ID, "development", "development", (SecretRow(keys.digest(pepper, secret)),), **key)
    above = [OrganisationRow("development", **organisation)], [TenantRow("development", "development", **tenant)]
    return Tenants(pepper, *above, [opening]), keys.text_of(KEY_ID, secret).reveal()


class Door:
    """A router over a replica of the fake engine, and what it recorded. `rows`: fields of organisation, tenant, key.

    `engine`: what answers instead.
    """

    def __init__(
        self,
        words_folder: Path,
        settings: Mapping[str, Any] = SETTINGS,
        ledger: Ledger | None = None,
        places: int = MANY,
        engine: CountingEngine | None = None,
        **rows: Mapping[str, Any],
    ) -> None:
        tenants, self.key = known_tenants(**rows)
        parsed = parse(settings)
        self.engine, self.records, self.counts = FakeEngine(), list[Record](), list[int]()
        replica = assemble(self.engine, parsed.models[0].engine.queue, places, self.counts.append)
        self.receipts, self.turns = replica
        engines = {"tiny": engine or self.receipts}
        router = build(parsed, {"tiny": words_folder}, engines, tenants, ledger, observe=self.records.append)
        self.app, self.accounts, self.stop = router.app, router.accounts, router.stop
        transport = httpx.ASGITransport(router.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {self.key}"}
        hooks = {"response": [_judged]}
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers, event_hooks=hooks)

    async def post(self, path: str, **changes: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": "tiny", **FORMS[path], "max_tokens": 8, **changes})


async def _judged(answer: httpx.Response) -> None:
    await answer.aread()
    # /health is no route of OpenAI's; its 503 is for machines that look at the status.
    if answer.request.method != "HEAD" and not answer.request.url.path.startswith("/health"):
        content_type = answer.headers.get("content-type", "")
        assert_openai_shape(answer.request.url.path, answer.status_code, content_type, answer.text)


def chunks(answer: httpx.Response) -> list[Any]:
    """The events of a whole stream. Comments are skipped, as clients do."""
    events = [event for event in answer.text.split("\n\n") if event and not event.startswith(":")]
    assert all(event.startswith("data: ") for event in events)
    lines = [event.removeprefix("data: ") for event in events]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def is_openai_error(answer: httpx.Response) -> bool:
    return set(answer.json()["error"]) == {"message", "type", "param", "code"}
