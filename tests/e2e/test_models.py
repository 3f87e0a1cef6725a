"""Two models in one deployment, real at every step: the tiny StarCoder on one rank, and the same on two (TP=2).

Beside them, in this process, a bare engine with the same weights: what is served must be what it says.
"""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from serve.engines.vllm import VllmEngine
from serve.settings import parse
from tests.support.asks import ASKS, greedy_ids
from tests.support.bad_adapters import BAD, REFUSED_BY_VLLM
from tests.support.collector import Collector
from tests.support.door import FORMS
from tests.support.openai_schema import assert_openai_shape
from tests.support.schemas import GOOD, HOSTILE
from tests.support.scores import (
    Check,
    Choices,
    assert_choices_of_a_seed_are_the_engines,
    assert_echo_scores_are_the_engines,
    assert_logprobs_are_the_engines,
)
from tests.support.stack import Stack, tiny_model
from tests.support.starcoder.models import PROMPT, by_hugging_face, ids_of


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[httpx.Client]:
    def judged(answer: httpx.Response) -> None:
        text = answer.read().decode()
        assert_openai_shape(answer.request.url.path, answer.status_code, answer.headers["content-type"], text)

    with stack.client() as opened:
        opened.event_hooks = {"response": [judged]}
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(starcoder_folder: Path) -> AsyncIterator[VllmEngine]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's imports warn about themselves
        engine = VllmEngine(parse({"models": [tiny_model(starcoder_folder)]}).models[0], starcoder_folder)
    yield engine
    engine.stop()


def choices_of(client: httpx.Client) -> Choices:
    async def choices(**changes: Any) -> list[Any]:
        body = {"model": "tiny", "prompt": PROMPT, **changes}
        answer = await asyncio.to_thread(client.post, "/v1/completions", json=body)
        return list(answer.json()["choices"])

    return choices


@pytest.mark.parametrize("form", ASKS)
def test_greedy_ids_on_two_ranks_are_those_on_one_and_those_of_hugging_face(
    client: httpx.Client, starcoder_folder: Path, form: str
) -> None:
    path, ask, prompt = ASKS[form]
    body = {**ask, "max_tokens": 48, "temperature": 0, "return_token_ids": True}
    one, two = (client.post(path, json={"model": m, **body}).json()["choices"][0] for m in ("tiny", "pair"))
    assert one["token_ids"] == two["token_ids"] == list(greedy_ids(starcoder_folder, prompt))


def test_the_models_are_listed_and_each_answers_under_its_own_name(client: httpx.Client, stack: Stack) -> None:
    parents = {"tiny": None, "pair": None, **dict.fromkeys(("good", *BAD), "pair")}
    assert {card["id"]: card["parent"] for card in client.get("/v1/models").json()["data"]} == parents
    for name in ("tiny", "pair", "good"):
        assert client.get(f"/v1/models/{name}").json()["id"] == name
        answer = client.post("/v1/completions", json={"model": name, "prompt": "x"}).json()
        assert answer["model"] == name
        assert stack.request_logged(answer["id"])["model"] == name
    assert len(stack.named("VLLM::Worker")) == 3  # one rank, and two


@pytest.mark.full  # tests/integration/wire/test_real_engine.py asks the same of a router in its own process
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "check",
    [assert_logprobs_are_the_engines, assert_echo_scores_are_the_engines, assert_choices_of_a_seed_are_the_engines],
)
async def test_what_the_stack_serves_is_what_a_bare_engine_says(
    client: httpx.Client, bare: VllmEngine, starcoder_folder: Path, check: Check
) -> None:
    await check(choices_of(client), bare, starcoder_folder)


def test_several_prompts_are_answered_as_each_alone(client: httpx.Client) -> None:
    prompts = [PROMPT, "class A:", "import"]
    body = {"model": "tiny", "max_tokens": 16, "temperature": 0}
    together = client.post("/v1/completions", json={**body, "prompt": prompts}).json()["choices"]
    alone = [client.post("/v1/completions", json={**body, "prompt": p}).json()["choices"][0] for p in prompts]
    assert [c["text"] for c in together] == [c["text"] for c in alone]


@pytest.mark.parametrize("name", GOOD)
def test_structured_output_parses_and_obeys_its_schema(client: httpx.Client, name: str) -> None:
    """The model is random: nothing but the schema makes this JSON."""
    body = {"model": "tiny", **FORMS["/v1/chat/completions"], "max_tokens": 400, "temperature": 1.0, "seed": 5,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": GOOD[name]}}}  # fmt: skip
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    Draft202012Validator(GOOD[name]).validate(json.loads(choice["message"]["content"]))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_quickly_and_the_engine_lives(client: httpx.Client, name: str) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": HOSTILE[name][0]}}
    if name == "deeper than the stack":
        shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["x"], "items": nest(150)}}}
    body = {"model": "tiny", **FORMS["/v1/chat/completions"], "max_tokens": 2}
    began = time.monotonic()
    refused = client.post("/v1/chat/completions", json={**body, "response_format": shape})
    assert time.monotonic() - began < 2
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    assert client.post("/v1/chat/completions", json=body).status_code == 200


def nest(levels: int) -> dict[str, Any]:
    """As deep as this process's own JSON writer can go."""
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def test_the_sdk_finds_nothing_wrong_in_strict_validation(stack: Stack) -> None:
    with openai.OpenAI(
        base_url=f"{stack.address}/v1", api_key=stack.key, max_retries=0, _strict_response_validation=True
    ) as sdk:
        messages: Any = [{"role": "user", "content": "Sort."}]
        chat: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 8, "n": 2, "logprobs": True,
                                "top_logprobs": 3}  # fmt: skip
        raw: dict[str, Any] = {"model": "tiny", "prompt": ["x", "y"], "max_tokens": 8, "logprobs": 3}
        assert len(sdk.models.list().data) == 3 + len(BAD)
        assert sdk.models.retrieve("tiny").id == "tiny"
        assert len(sdk.chat.completions.create(**chat).choices) == 2
        assert len(sdk.completions.create(**raw).choices) == 2
        usage = {"stream_options": {"include_usage": True}}
        assert [c.usage for c in sdk.chat.completions.create(**chat, stream=True, extra_body=usage)][-1] is not None
        assert len(list(sdk.completions.create(**{**raw, "prompt": "x", "max_tokens": 1}, stream=True))) == 1
        # OpenAI's type knows no null in a streamed completion's finish_reason; its server and everybody's send it.
        with pytest.raises(openai.APIResponseValidationError) as wrong:
            list(sdk.completions.create(**raw, stream=True))
        assert isinstance(wrong.value.__cause__, ValidationError)
        assert {(e["loc"][-1], e["input"]) for e in wrong.value.__cause__.errors()} == {("finish_reason", None)}


def test_a_stream_whose_engine_is_silent_is_kept_alive(stack: Stack) -> None:
    """The engines stand still until the stream has said that it waits."""
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2, "stream": True}
    engines = stack.named("VLLM::EngineCore")
    said = ""
    try:
        for engine in engines:
            engine.suspend()
        with stack.client() as patient, patient.stream("POST", "/v1/completions", json=body) as answer:
            for text in answer.iter_text():
                said += text
                for engine in engines:
                    engine.resume()
    finally:
        for engine in engines:
            engine.resume()
    assert said.startswith(": waiting\n\n")
    assert said.endswith("data: [DONE]\n\n")
    reply = json.loads(said[said.index("{") : said.index("}\n") + 1])
    assert stack.request_logged(reply["id"])["ttft_s"] > 1


@pytest.mark.parametrize("name", BAD)
def test_a_bad_adapter_is_named_and_leaves_the_others_alone(stack: Stack, client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/completions", json={"model": name, "prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_unavailable")
    assert all(client.post("/v1/completions", json={"model": m, "prompt": "x"}).is_success for m in ("pair", "good"))
    assert client.get("/health").status_code == 200
    for told in (stack.logged(), *([] if name == REFUSED_BY_VLLM else [stack.said()])):
        assert [BAD[name] in line for line in told.splitlines() if f"adapter {name}: " in line] == [True]


def test_an_adapter_answers_as_its_merged_model_under_its_own_name(
    client: httpx.Client, starcoder_folder: Path, adapter_folder: Path
) -> None:
    body = {"prompt": PROMPT, "max_tokens": 64, "temperature": 0, "return_token_ids": True}
    found = [client.post("/v1/completions", json={"model": m, **body}).json() for m in ("pair", "good")]
    wanted = [by_hugging_face(f, [ids_of(starcoder_folder)])[0] for f in (starcoder_folder, adapter_folder / "merged")]
    assert [answer["choices"][0]["token_ids"] for answer in found] == [list(answer.ids) for answer in wanted]
    assert wanted[0].ids != wanted[1].ids


def test_a_trace_goes_from_the_client_through_router_queue_and_engine(
    client: httpx.Client, collector: Collector
) -> None:
    trace, parent, canary = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "canary-4711"
    body = {"model": "pair", "prompt": canary, "max_tokens": 4}
    collector.spans.clear()
    client.post("/v1/completions", json=body, headers={"traceparent": f"00-{trace}-{parent}-01"})
    client.post("/v1/completions", json=body)  # sampled out
    deadline = time.monotonic() + 20
    while len(spans := {s.name: s for s in collector.spans}) < 3:
        assert time.monotonic() < deadline, spans
        time.sleep(0.05)
    request, queue, engine = (spans[f"starserve.{name}"] for name in ("request", "queue", "engine"))
    assert {s.trace_id for s in collector.spans} == {trace}
    assert (request.parent_id, queue.parent_id, engine.parent_id) == (parent, request.span_id, request.span_id)
    assert (request.service, engine.service) == ("starserve-router", "starserve-engine")
    assert request.start_ns <= queue.start_ns <= queue.end_ns == engine.start_ns < engine.end_ns
    assert "4" in request.attributes["starserve.output_tokens"]
    assert canary not in str(collector.spans)
