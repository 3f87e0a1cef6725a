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
from tests.support.scores import assert_scores
from tests.support.stack import tiny_model
from tests.support.starcoder.models import PROMPT, bare_answer, ids_of

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


async def choices(client: httpx.AsyncClient, **changes: Any) -> list[Any]:
    answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT, **changes})
    return list(answer.json()["choices"])


async def test_logprobs_of_the_answer_are_the_engines(
    client: httpx.AsyncClient, vllm_engine: VllmEngine, starcoder_folder: Path
) -> None:
    (served,) = await choices(client, max_tokens=24, temperature=0, logprobs=5)
    events = await bare_answer(vllm_engine, ids_of(starcoder_folder), temperature=0.0, logprobs=5)
    assert served["text"] == "".join(event.text for event in events)
    assert_scores(served["logprobs"], [s for event in events for s in event.logprobs or ()])


async def test_echo_scores_the_prompt_as_the_engine_does(
    client: httpx.AsyncClient, vllm_engine: VllmEngine, starcoder_folder: Path
) -> None:
    ids = ids_of(starcoder_folder)
    events = await bare_answer(vllm_engine, ids, max_tokens=1, logprobs=5, prompt_logprobs=5)
    assert events[0].start is not None
    for prompt in (PROMPT, ids):
        (served,) = await choices(client, prompt=prompt, max_tokens=0, echo=True, logprobs=5)
        assert served["text"] == PROMPT
        assert_scores(served["logprobs"], events[0].start.prompt_logprobs or ())


async def test_n_sampled_choices_of_a_seed_are_the_engines_and_come_again(
    client: httpx.AsyncClient, vllm_engine: VllmEngine, starcoder_folder: Path
) -> None:
    asked = {"max_tokens": 24, "n": 3, "temperature": 1.0, "return_token_ids": True}
    first, again, other = [await choices(client, **asked, seed=seed) for seed in (11, 11, 12)]
    served = [choice["token_ids"] for choice in first]
    events = await bare_answer(vllm_engine, ids_of(starcoder_folder), n=3, seed=11)
    assert served == [[i for e in events if e.choice == c for i in e.token_ids] for c in range(3)]
    assert served == [choice["token_ids"] for choice in again]
    assert served != [choice["token_ids"] for choice in other]
    assert len({tuple(ids) for ids in served}) == 3
