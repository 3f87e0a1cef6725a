"""Where the parts are made and joined, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI

from serve.engines.base import Engine
from serve.logs import logger
from serve.prompts import Prompts
from serve.request import Corridor, Observe, Served
from serve.settings import Model, Settings
from serve.tenants import Tenants
from serve.tokens import TokenizerPool, Vocabulary
from serve.tracing import Traces
from serve.wire.api import Api, RequestIds, install_errors
from serve.wire.docs import install_docs

DESCRIPTION = "OpenAI-compatible, plus `/v1/instruct`, the Alpaca form. Every `/v1` route needs a key."


def build(
    settings: Settings,
    folders: Mapping[str, Path],
    engine_of: Callable[[Model], Engine],
    tenants: Tenants,
    observe: Observe | None = None,
) -> FastAPI:
    """The router's ASGI app. `folders`: prepared folder per model name; `engine_of`: who answers for a model.

    `observe` gets the record of each request; without one it is logged.
    """
    served = dict[str, Served]()
    for model in settings.models:
        base = _served(model, folders[model.name], engine_of(model))
        served |= {model.name: base, **{a.name: replace(base, adapter=a.name) for a in model.adapters}}
    pool = TokenizerPool(settings.router.tokenizer_threads)
    corridor = Corridor(served, pool, observe or logger(settings.logs), Traces(settings.tracing, "router"))
    app = FastAPI(title="starserve", description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.include_router(Api(corridor, tenants, pool, settings).router())
    install_docs(app)
    install_errors(app)
    app.add_middleware(RequestIds, echo=settings.http.proxy == "haproxy")
    return app


def _served(model: Model, folder: Path, engine: Engine) -> Served:
    vocabulary, templates = Vocabulary(folder), model.templates
    preamble = templates.prompt_file.read_text(encoding="utf-8") if templates.prompt_file else None
    prompts = Prompts(
        templates.chat, templates.instruct, vocabulary.eos, vocabulary.template, preamble,
        vocabulary.control_tokens, model.control_tokens,
    )  # fmt: skip
    return Served(model, vocabulary, prompts, engine)
