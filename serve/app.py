"""Where the parts are made and joined, and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI

from serve.accounts import Accounts, NoBooks
from serve.draining import Draining
from serve.engines.base import CountingEngine
from serve.jobs import Served
from serve.ledger.ledger import Counters, Ledger
from serve.ledger.usage import Spent, spent, usage
from serve.limitstore.base import LimitStore
from serve.limitstore.breaker import Observe as OnLimits
from serve.limitstore.opened import opened
from serve.logs import logger
from serve.model_settings import Model
from serve.prompts import Prompts
from serve.recovering import Recovery
from serve.refused import Refused
from serve.request import Corridor, Observe
from serve.restoring import Spent as AskSpent
from serve.settings import Settings
from serve.tenants.directory import Tenants
from serve.threads import Threads
from serve.tokens import Vocabulary
from serve.tracing import Traces
from serve.wire.api import Api, install_errors
from serve.wire.cors import Cors
from serve.wire.docs import install_docs
from serve.wire.middleware import RequestIds
from serve.wire.openai import licence_of
from serve.words import Level, Tenant

DESCRIPTION = "OpenAI-compatible, plus `/v1/instruct`, the Alpaca form. Every `/v1` route needs a key."

Beside = Callable[[], Coroutine[Any, Any, None]]
_COUNTERS_EVERY_S = 5.0
_CATCH_UP_S = 5.0
SETTLE_S = 10.0  # of a stop: to ask engines what cut answers cost, and again to write that down


class Router(NamedTuple):
    """`app` serves; the others belong to it.

    `stop` ends it in good order: nothing new is let in, what runs gets so many seconds, and when it returns all of that
    is settled and in the ledger. It returns how many answers were cut.
    """

    app: FastAPI
    accounts: Accounts
    limits: LimitStore
    stop: Callable[[float], Coroutine[Any, Any, int]]


def build(
    settings: Settings,
    folders: Mapping[str, Path],
    engines: Mapping[str, CountingEngine],
    tenants: Tenants,
    ledger: Ledger | None = None,
    *,
    observe: Observe | None = None,
    on_limits: OnLimits = lambda event, band: None,
    on_ledger: Callable[[Counters], None] = lambda counters: None,
    beside: Sequence[Beside] = (),
) -> Router:
    """Join a router's parts. Deployments and test rigs both call this. By model: its prepared folder, and its engine.

    Without a ledger nothing is written down. `observe` gets the record of each request; without one it is logged.
    `on_limits` is told what happens while the shared store of limits is lost, `on_ledger` the ledger's counters.
    `beside`: what else runs as long as the app does.
    """
    limits = opened(settings.limit_store, settings.name, on_limits)
    refused = Refused(bodies_per_minute=settings.caps.refused_per_minute)
    accounts = Accounts(limits, ledger or NoBooks(), _spent_in(ledger) if ledger else None, refused)
    served = dict[str, Served]()
    for model in settings.models:
        base = served_model(model, folders[model.name], engines[model.name])
        served |= {model.name: base, **{a.name: replace(base, adapter=a.name) for a in model.adapters}}
    pool = Threads(settings.router.tokenizer_threads, "text")
    traces = Traces(settings.tracing, "router")
    observe = observe or logger(settings.logs)
    corridor = Corridor(served, pool, accounts, observe, traces, settings.caps.logprob_entries)
    renew_every_s = settings.limit_store.hold_s / 3  # two may be lost before a hold lapses
    running = [*beside, accounts.keep_forgetting, lambda: accounts.renewals.keep_renewing(renew_every_s)]
    if ledger:
        recovery = Recovery(settings.models, engines, ledger)
        running += [lambda: _keep_shipping(ledger, on_ledger), recovery.keep_recovering]
    app = FastAPI(
        title="starserve",
        description=_description(settings.models),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_running(running, accounts, limits),
    )
    usage_of = partial(usage, ledger.database) if ledger else None
    app.include_router(Api(corridor, tenants, pool, settings, usage_of).router())
    install_docs(app)
    install_errors(app)
    if settings.http.cors_origins:
        app.add_middleware(Cors, origins=settings.http.cors_origins)
    app.add_middleware(RequestIds, echo=settings.http.proxy == "haproxy")
    app.add_middleware(corridor.draining.counting)
    return Router(app, accounts, limits, partial(_stop, corridor.draining, accounts, ledger))


async def _stop(draining: Draining, accounts: Accounts, ledger: Ledger | None, within_s: float) -> int:
    cut = await draining.drain(within_s)
    with suppress(TimeoutError):  # where the database is away, a later start finds the rest in the journal
        async with asyncio.timeout(SETTLE_S):
            await accounts.quiet()
    if ledger:
        await asyncio.to_thread(ledger.flush, SETTLE_S)
    return cut


def _running(
    beside: Sequence[Beside], accounts: Accounts, limits: LimitStore
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The app's life: what runs beside it starts and ends with it. None of it may end by itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(start()) for start in beside]
        yield
        await accounts.quiet()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await limits.close()

    return lifespan


async def _keep_shipping(ledger: Ledger, tell: Callable[[Counters], None]) -> None:
    """Ship the ledger as long as the app runs, and at the end what is left of it."""
    await asyncio.to_thread(ledger.start)
    try:
        while True:
            tell(ledger.counters())
            await asyncio.sleep(_COUNTERS_EVERY_S)
    finally:
        await asyncio.to_thread(ledger.stop)


def _spent_in(ledger: Ledger) -> AskSpent:
    def sums(tenant: Tenant, level: Level) -> Spent:
        ledger.catch_up(_CATCH_UP_S)  # what was charged in this router is in the sums, whatever the store forgot of it
        return spent(ledger.database, tenant, level, time.time())

    async def spent_by(tenant: Tenant, level: Level) -> Spent:
        return await asyncio.to_thread(sums, tenant, level)

    return spent_by


def _description(models: Sequence[Model]) -> str:
    """The head of /docs: what is served, and under which licences."""
    lines = [DESCRIPTION, "", "Answers are generated by a machine; code in them may be wrong, or somebody else's.", ""]
    for model in models:
        name = model.licence or "licence not stated"
        licence = f"[{name}]({model.licence_url})" if model.licence_url else name
        texts = f"[`/v1/models/{model.name}`](v1/models/{model.name})"
        lines.append(f"- `{model.name}`: {licence}. {model.licence_summary or ''} Its texts: {texts} (with a key).")
    return "\n".join(lines)


def served_model(model: Model, folder: Path, engine: CountingEngine) -> Served:
    """One model with its vocabulary and prompts, from its prepared folder."""
    vocabulary, prompts = words_of(model, folder)
    return Served(model, vocabulary, prompts, engine, licence_of(model, folder))


def words_of(model: Model, folder: Path) -> tuple[Vocabulary, Prompts]:
    vocabulary, templates = Vocabulary(folder), model.templates
    preamble = templates.prompt_file.read_text(encoding="utf-8") if templates.prompt_file else None
    prompts = Prompts(
        templates.chat, templates.instruct, vocabulary.eos, vocabulary.template, preamble,
        vocabulary.control_tokens, model.control_tokens,
    )  # fmt: skip
    return vocabulary, prompts
