"""A router over the real engine, in this process: what it answers is what its engine says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from serve.app import build
from serve.engines.assembly import assemble
from serve.engines.vllm import VllmEngine
from serve.settings import parse
from tests.support.door import known_tenants
from tests.support.scores import (
    Check,
    Choices,
    assert_choices_of_a_seed_are_the_engines,
    assert_echo_scores_are_the_engines,
    assert_logprobs_are_the_engines,
)
from tests.support.stack import tiny_model
from tests.support.starcoder.models import PROMPT

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
]


@pytest_asyncio.fixture(loop_scope="session")
async def client(vllm_engine: VllmEngine, starcoder_folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings, (tenants, key) = parse({"models": [tiny_model(starcoder_folder)]}), known_tenants()
    (model,) = settings.models
    engine = assemble(vllm_engine, model.engine.queue, model.engine.max_num_seqs, lambda tokens: None).receipts
    app = build(settings, {"tiny": starcoder_folder}, {"tiny": engine}, tenants).app
    headers = {"Authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as opened:
        yield opened


def choices_of(client: httpx.AsyncClient) -> Choices:
    async def choices(**changes: Any) -> list[Any]:
        answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT, **changes})
        return list(answer.json()["choices"])

    return choices


@pytest.mark.parametrize(
    "check",
    [assert_logprobs_are_the_engines, assert_echo_scores_are_the_engines, assert_choices_of_a_seed_are_the_engines],
)
async def test_what_the_router_serves_is_what_its_engine_says(
    client: httpx.AsyncClient, vllm_engine: VllmEngine, starcoder_folder: Path, check: Check
) -> None:
    await check(choices_of(client), vllm_engine, starcoder_folder)
