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


BIG = 2**31 - 1
EXTREMES: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": 2}, {"temperature": 5e-324}, {"top_p": 5e-324, "temperature": 1}, {"top_p": 1},
    {"top_k": -1}, {"top_k": 0}, {"top_k": BIG, "temperature": 1}, {"min_p": 0}, {"min_p": 1, "temperature": 1},
    {"seed": -(2**63)}, {"seed": 2**63 - 1, "temperature": 1}, {"seed": -1, "temperature": 1},
    {"n": 8, "temperature": 1},
    {"presence_penalty": 2, "frequency_penalty": 2}, {"presence_penalty": -2, "frequency_penalty": -2},
    {"repetition_penalty": 0.01, "temperature": 1}, {"repetition_penalty": 100, "temperature": 1},
    {"logit_bias": {str(i): -100 for i in range(300)}, "temperature": 1}, {"logit_bias": {"0": 100}},
    {"logit_bias": {"1": 5e-324}}, {"logprobs": 20}, {"logprobs": 0}, {"echo": True, "logprobs": 5, "max_tokens": 0},
    {"stop": ["x" * 256] * 16}, {"stop_token_ids": list(range(64))},
    {"min_tokens": 8, "stop_token_ids": list(range(64))},
    {"min_tokens": 8, "logit_bias": {"0": 100}}, {"ignore_eos": True}, {"skip_special_tokens": False},
    {"prompt": [0]}, {"prompt": [[1]] * 32}, {"prompt": "\x00"}, {"prompt": "🦊" * 300}, {"prompt": "", "suffix": ""},
    {"max_tokens": 2000, "stop_token_ids": list(range(64)), "logit_bias": {"1": 100}},
    {"top_k": 1, "top_p": 1e-9, "min_p": 1, "temperature": 2, "logit_bias": {str(i): 100 for i in range(300)}},
]  # fmt: skip


@pytest.mark.parametrize("extreme", EXTREMES, ids=lambda extreme: ",".join(extreme))
async def test_every_accepted_extreme_is_answered_by_the_real_engine_or_refused_by_name(
    client: httpx.AsyncClient, vllm_engine: VllmEngine, extreme: dict[str, Any]
) -> None:
    answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 8, **extreme})
    told = answer.json()
    if answer.status_code == 200:
        assert all(choice["finish_reason"] in ("stop", "length") for choice in told["choices"])
        assert "NaN" not in answer.text
    else:
        assert (answer.status_code, told["error"]["param"]) == (400, next(iter(extreme))), told
    await vllm_engine.check()
    plain = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 8})
    assert plain.status_code == 200


@pytest.mark.parametrize(
    "extreme",
    [
        {"logit_bias": {str(i): -100 for i in range(300)}},
        {"temperature": 2, "top_k": 1},
        {"stop": ["{"]},
        {"presence_penalty": 2, "repetition_penalty": 100},
        {"logprobs": True, "top_logprobs": 20},
        {"max_tokens": 1},
        {"temperature": 1, "min_p": 1},
        {"temperature": 1, "n": 8},
        {"logit_bias": {"0": 100}},
    ],
    ids=lambda extreme: ",".join(extreme),
)
async def test_no_switch_leaves_a_grammar_without_a_token(client: httpx.AsyncClient, extreme: dict[str, Any]) -> None:
    """Masks and biases meet in the engine: whatever a client asks for, the grammar's tokens stay possible."""
    asked = {"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}}
    answer = await client.post("/v1/chat/completions", json={"model": "tiny", "max_tokens": 64, **asked, **extreme})
    assert answer.status_code == 200, answer.text
