"""One row of the ledger, and how a request's record becomes one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from serve.record import Record

OPEN = "open"  # the outcome of a row that is not closed
DAY_S = 86_400
_STRANGE = re.compile(r"[^\w.:/@ -]")
_LONGEST_NAME = 200  # characters


@dataclass(frozen=True, slots=True)
class Entry:
    """A request that reached the queue, or was refused before it. Times of day are unix seconds."""

    request_id: str
    opened_s: float
    closed_s: float | None = None
    outcome: str = OPEN  # then done, refused, cancelled, failed, lost
    code: str = ""  # the error's
    router: str = ""  # one life of one router process
    engine: str = ""
    organisation_id: str = ""
    tenant_id: str = ""
    key_id: str = ""
    model: str = ""
    adapter: str = ""
    form: str = ""
    template: str = ""
    stream: bool = False
    jobs: int = 0  # their ids are those of `job_ids`
    # Billed: once, however many choices and engines, and only of prompts that an engine read.
    prompt_tokens: int = 0  # these four, of an open row: as many as its last mark knew
    computed_prompt_tokens: int = 0  # what engines really computed of it, after a failover once more
    cached_tokens: int = 0  # what they found in their prefix caches instead
    output_tokens: int = 0
    cost: int = 0  # millionths of the deployment's currency
    queue_s: float | None = None
    ttft_s: float | None = None
    duration_s: float | None = None

    @property
    def day(self) -> int:
        """Of UTC, counted from 1970-01-01."""
        return int(self.opened_s // DAY_S)

    def job_ids(self) -> list[str]:
        return [f"{self.request_id}-{i}" for i in range(self.jobs)]

    def told(self) -> dict[str, Any]:
        """What differs from an empty entry: what a journal's line holds."""
        return {name: value for name in NAMES if (value := getattr(self, name)) != _EMPTY[name]}

    def row(self) -> dict[str, Any]:
        """Every column of its table."""
        return {name: getattr(self, name) for name in NAMES} | {"day": self.day}

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Entry:
        """The inverse of `told`; what another version of starserve wrote besides is left out."""
        return cls(**{name: value for name, value in told.items() if name in _EMPTY})


NAMES = tuple(field.name for field in fields(Entry))
MARKED = ("engine", "prompt_tokens", "computed_prompt_tokens", "cached_tokens", "output_tokens", "queue_s", "ttft_s")
_EMPTY = {field.name: field.default for field in fields(Entry)}


def entry_of(record: Record, router: str, now_s: float, closed: bool) -> Entry:
    """The row of a request as it stands. `now_s`: unix seconds."""
    opened_s = record.opened_s if record.opened_s is not None else now_s - record.duration_s
    return Entry(
        request_id=record.request_id, opened_s=opened_s, closed_s=now_s if closed else None,
        outcome=record.outcome if closed else OPEN, code=record.code or "" if closed else "",
        router=router, engine=name_of(record.engine), organisation_id=record.organisation_id or "",
        tenant_id=record.tenant_id or "", key_id=record.key_id or "", model=name_of(record.model),
        adapter=name_of(record.adapter), form=record.form, template=record.template or "",
        stream=bool(record.stream), jobs=record.jobs or 0, prompt_tokens=record.prompt_tokens,
        computed_prompt_tokens=record.computed_prompt_tokens or 0, cached_tokens=record.cached_tokens,
        output_tokens=record.output_tokens, cost=record.cost or 0, queue_s=record.queue_s, ttft_s=record.ttft_s,
        duration_s=record.duration_s if closed else None,
    )  # fmt: skip


def mark_of(record: Record) -> dict[str, Any]:
    """What is known of a request on its way: enough to close its row should this router die."""
    values = {name: getattr(record, name) for name in MARKED}
    return {"request_id": record.request_id} | {name: value for name, value in values.items() if value is not None}


def name_of(given: str | None) -> str:
    """A name that any database and spreadsheet takes: a refused request's model is whatever its client wrote."""
    return _STRANGE.sub("?", (given or "")[:_LONGEST_NAME])
