"""One model of a configuration in this process, as a router would serve it: vLLM behind the corridor, without HTTP."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.accounts import Accounts, NoBooks
from serve.app import served_model
from serve.bench.questions import Question
from serve.engines.base import Engine
from serve.engines.receipts import Receipts
from serve.engines.vllm import VllmEngine
from serve.errors import ServeError
from serve.limitstore.memory import MemoryLimitStore
from serve.model_settings import Model
from serve.record import Record
from serve.request import Corridor
from serve.settings import Caps, Settings, parse
from serve.threads import Threads
from serve.tracing import Traces
from serve.wire.parse import parse as parse_body
from serve.words import Ask, Job, Secret, Tenant


@dataclass(frozen=True, slots=True)
class LocalModel:
    engine: Engine
    corridor: Corridor
    name: str
    caps: Caps

    def ask(self, question: Question) -> Ask:
        """Raises BadRequest, which names the field."""
        return parse_body(question.form, json.dumps({**question.body, "model": self.name}).encode(), self.caps)

    async def jobs(self, question: Question) -> list[Job]:
        """What the engine gets for a question: rendered, counted, within the context."""
        ask = self.ask(question)
        somebody = tenant()
        served = self.corridor.find(ask.model, somebody)
        return await self.corridor.maker.jobs(ask, somebody, served, secrets.token_hex(12))


def every_token(model: Model) -> Model:
    """The model with each token in a message of its own."""
    return model.model_copy(update={"engine": model.engine.model_copy(update={"coalesce_ms": 0.0})})


def tenant() -> Tenant:
    """Somebody new: finds nothing of earlier runs in the prefix cache."""
    return Tenant("bench", "bench", Secret(secrets.token_hex(16)))


@asynccontextmanager
async def local_model(task: Mapping[str, Any]) -> AsyncIterator[LocalModel]:
    """`task`: `settings` (of a deployment with one model) and the prepared `folder`."""
    settings: Settings = parse(task["settings"])
    (model,) = settings.models
    # What is measured here is the engine: no token waits for company.
    engine = VllmEngine(every_token(model), Path(task["folder"]))
    try:
        await engine.warm_up()
        served = served_model(model, Path(task["folder"]), Receipts(engine, queues=False))
        corridor = Corridor(
            {model.name: served}, Threads(settings.router.tokenizer_threads, "text"),
            Accounts(MemoryLimitStore(), NoBooks()), _forget, Traces(settings.tracing, "bench"),
        )  # fmt: skip
        yield LocalModel(engine, corridor, model.name, settings.caps)
    finally:
        engine.stop()


def _forget(record: Record) -> None:
    pass


async def all_jobs(local: LocalModel, asked: Sequence[Question]) -> tuple[list[Job], float]:
    """The jobs of all questions, and the seconds that rendering and counting took. RuntimeError names a bad one."""
    began, jobs = time.monotonic(), list[Job]()
    for question in asked:
        if question.problem:
            raise RuntimeError(question.problem)
        try:
            jobs += await local.jobs(question)
        except ServeError as e:
            raise RuntimeError(f"{question.question_id}: {e.message}") from None
    return jobs, time.monotonic() - began
