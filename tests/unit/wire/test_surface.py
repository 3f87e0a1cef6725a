"""The whole OpenAI surface through the fake engine, whose tokens and log-probabilities are known."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from serve.wire.fields import HARMLESS, REFUSED
from serve.words import Sampling
from tests.support.door import FORMS, SETTINGS, Door, chunks

TEXTS = ["ab", "xyz", "q"]


def texts(pieces: list[Any]) -> dict[int, str]:
    """What a stream says, per choice."""
    said: dict[int, str] = {}
    for choice in (c for piece in pieces for c in piece["choices"]):
        text = choice.get("text", choice.get("delta", {}).get("content")) or ""
        said[choice["index"]] = said.get(choice["index"], "") + text
    return said


async def test_choices_of_several_prompts_are_numbered_through(door: Door) -> None:
    body = {"prompt": TEXTS, "n": 2, "temperature": 1.0, "max_tokens": 5}
    unary = (await door.post("/v1/completions", **body)).json()
    assert [choice["index"] for choice in unary["choices"]] == [0, 1, 2, 3, 4, 5]
    assert unary["usage"]["completion_tokens"] == 30
    alone = [(await door.post("/v1/completions", **{**body, "prompt": text})).json() for text in TEXTS]
    assert [c["text"] for c in unary["choices"]] == [c["text"] for one in alone for c in one["choices"]]
    assert unary["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)


@pytest.mark.parametrize("path", FORMS)
async def test_a_stream_of_several_choices_joined_is_the_unary_answer(door: Door, path: str) -> None:
    body: dict[str, Any] = {"n": 3, "temperature": 1.0}
    if path == "/v1/completions":
        body |= {"prompt": TEXTS, "echo": True}
    unary = (await door.post(path, **body)).json()
    answer = await door.post(path, **body, stream=True, stream_options={"include_usage": True})
    *pieces, last = chunks(answer)
    whole = {c["index"]: c.get("text", c.get("message", {}).get("content")) for c in unary["choices"]}
    assert texts(pieces) == whole
    assert last["usage"] == unary["usage"]
    ends = [c["index"] for p in pieces for c in p["choices"] if c["finish_reason"]]
    assert sorted(ends) == sorted(whole)


async def test_prompts_may_be_lists_of_ids(door: Door) -> None:
    one = (await door.post("/v1/completions", prompt=[300, 301])).json()
    two = (await door.post("/v1/completions", prompt=[[300, 301], [302]])).json()
    assert two["choices"][0]["text"] == one["choices"][0]["text"] == "<300><301>" * 4
    assert two["choices"][1]["text"] == "<302>" * 8


async def test_echo_puts_the_prompt_before_the_answer(door: Door) -> None:
    plain = (await door.post("/v1/completions")).json()
    echoed = (await door.post("/v1/completions", echo=True)).json()
    assert echoed["choices"][0]["text"] == "def f(" + plain["choices"][0]["text"]
    assert echoed["usage"] == plain["usage"]
    ids = list(door.engine.jobs[0].prompt_ids)
    of_ids = (await door.post("/v1/completions", echo=True, prompt=ids)).json()
    assert of_ids["choices"][0]["text"] == echoed["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs_scores_the_prompt_and_zero_tokens_score_nothing_else(
    door: Door, stream: bool
) -> None:
    answer = await door.post("/v1/completions", echo=True, logprobs=2, max_tokens=0, stream=stream)
    choices = [c for p in chunks(answer) for c in p["choices"]] if stream else answer.json()["choices"]
    ids = door.engine.jobs[0].prompt_ids
    scores: dict[str, list[Any]] = {}
    for choice in choices:
        for name, values in (choice["logprobs"] or {}).items():
            scores[name] = scores.get(name, []) + values
    assert "".join(c["text"] for c in choices) == "".join(scores["tokens"]) == "def f("
    assert scores["token_logprobs"] == [None, *(-i / 1024 for i in ids[1:])]
    assert scores["top_logprobs"][0] is None
    assert set(scores["top_logprobs"][1].values()) == {-ids[1] / 1024, -(ids[1] + 1) / 1024}
    assert scores["text_offset"][0] == 0
    assert scores["text_offset"][-1] == len("def f(") - len(scores["tokens"][-1])
    if not stream:
        assert answer.json()["usage"]["completion_tokens"] == 0
    assert door.engine.jobs[0].sampling.max_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_logprobs_spell_their_bytes(door: Door, stream: bool) -> None:
    answer = await door.post("/v1/chat/completions", logprobs=True, top_logprobs=2, stream=stream)
    choices = [c for p in chunks(answer) for c in p["choices"]] if stream else answer.json()["choices"]
    entries = [entry for c in choices for entry in (c["logprobs"] or {"content": []})["content"]]
    prompt = door.engine.jobs[0].prompt_ids
    assert [entry["logprob"] for entry in entries] == [-i / 1024 for i in prompt[:8]]
    assert bytes(b for entry in entries for b in entry["bytes"]).decode().startswith("Below")
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * 8


async def test_usage_can_come_with_every_chunk(door: Door) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *pieces, last = chunks(await door.post("/v1/completions", stream=True, stream_options=options))
    assert [piece["usage"]["completion_tokens"] for piece in pieces] == list(range(1, 9))
    assert {piece["usage"]["prompt_tokens"] for piece in [*pieces, last]} == {last["usage"]["prompt_tokens"]}


SWITCHES: dict[str, tuple[Any, Any]] = {
    "temperature": (0.5, 0.5), "top_p": (0.5, 0.5), "top_k": (7, 7), "min_p": (0.1, 0.1), "seed": (3, 3), "n": (2, 2),
    "stop": (["x"], ("x",)), "stop_token_ids": ([5], (5,)), "ignore_eos": (True, True), "min_tokens": (2, 2),
    "max_tokens": (3, 3), "presence_penalty": (1, 1.0), "frequency_penalty": (-1, -1.0),
    "repetition_penalty": (1.5, 1.5), "logit_bias": ({"5": 1}, ((5, 1.0),)), "skip_special_tokens": (False, False),
}  # fmt: skip


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("path", FORMS)
async def test_every_switch_reaches_the_engine(door: Door, path: str, name: str) -> None:
    sent, expected = SWITCHES[name]
    assert (await door.post(path, **{name: sent})).status_code == 200
    reached = getattr(door.engine.jobs[0].sampling, name)
    # A template's own stops follow the client's.
    assert (reached[: len(expected)] if name.startswith("stop") else reached) == expected


def test_no_switch_of_the_engine_is_out_of_a_clients_reach() -> None:
    shaped = {"logprobs", "prompt_logprobs", "json_schema"}  # asked for in words of their own, tested above and below
    assert {field.name for field in fields(Sampling)} == SWITCHES.keys() | shaped


@pytest.mark.parametrize("path", FORMS)
async def test_nulls_are_as_good_as_absence(door: Door, path: str) -> None:
    schema = (await door.client.get("/openapi.json")).json()["paths"][path]["post"]["requestBody"]
    shape = schema["content"]["application/json"]["schema"]
    nulls = {
        name: None
        for name in [*shape["properties"], *REFUSED]
        if name not in {*shape["required"], "max_tokens", *FORMS[path]}
    }
    assert len(nulls) > 20
    assert (await door.post(path, **nulls)).json()["choices"] == (await door.post(path)).json()["choices"]
    streamed = {**nulls, "stream": True, "stream_options": {"include_usage": None, "continuous_usage_stats": None}}
    assert (await door.post(path, **streamed)).status_code == 200


async def test_a_message_may_come_back_as_the_sdk_dumped_it(door: Door) -> None:
    dumped = {"role": "assistant", "content": "x", "refusal": None, "annotations": None, "audio": None,
              "function_call": None, "tool_calls": None}  # fmt: skip
    asked = {"role": "user", "content": "y", "name": None}
    assert (await door.post("/v1/chat/completions", messages=[asked, dumped, asked])).status_code == 200


@pytest.mark.parametrize("path", FORMS)
async def test_harmless_fields_change_nothing_and_name_their_sender(door: Door, path: str) -> None:
    plain = (await door.post(path)).json()["choices"]
    assert (await door.post(path, **dict.fromkeys(HARMLESS, "x"))).json()["choices"] == plain
    assert all(":" in why for why in HARMLESS.values())


@pytest.mark.parametrize("name", REFUSED)
async def test_fields_that_are_refused_say_why(door: Door, name: str) -> None:
    answer = await door.post("/v1/completions", **{name: 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert REFUSED[name] in answer.json()["error"]["message"]


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
async def test_tools_are_accepted_never_called_and_a_header_says_so(door: Door, choice: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    offered = {"tools": [tool], "parallel_tool_calls": True, **choice}
    plain = await door.post("/v1/chat/completions")
    answer = await door.post("/v1/chat/completions", **offered)
    assert answer.json()["choices"] == plain.json()["choices"]
    assert "never called" in answer.headers["warning"]
    assert "never called" in (await door.post("/v1/chat/completions", **offered, stream=True)).headers["warning"]
    assert "warning" not in plain.headers


async def test_response_format_becomes_the_schema_that_the_engine_holds_to(door: Door) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for path in ("/v1/chat/completions", "/v1/instruct"):
        await door.post(path, response_format={"type": "text"})
        await door.post(path, response_format={"type": "json_object"})
        named = {"name": "x", "schema": schema, "strict": True}
        await door.post(path, response_format={"type": "json_schema", "json_schema": named})
        held = [job.sampling.json_schema for job in door.engine.jobs[-3:]]
        assert [json.loads(h) if h else None for h in held] == [None, {"type": "object"}, schema]


@pytest.mark.parametrize("path", FORMS)
async def test_a_slow_first_token_is_bridged_with_comments_that_clients_skip(
    words_folder: Path, tmp_path: Path, path: str
) -> None:
    patient = Door(words_folder, {**SETTINGS, "http": {"comment_after_s": 0.05}})
    patient.engine.ttft_s = patient.engine.tpot_s = 0.2
    async with patient.client:
        answer = await patient.post(path, stream=True, max_tokens=2)
        whole = (await patient.post(path, max_tokens=2)).json()["choices"][0]
    before, between = answer.text.index("data:"), answer.text.rindex("data: {")
    assert answer.text[:before].count(": waiting\n\n") >= 1
    assert answer.text[before:between].count(": waiting\n\n") >= 1
    assert texts(chunks(answer))[0] == whole.get("text", whole.get("message", {}).get("content"))


async def test_a_refusal_after_a_slow_start_is_told_in_band(words_folder: Path, tmp_path: Path) -> None:
    patient = Door(words_folder, {**SETTINGS, "http": {"comment_after_s": 0.02}})
    patient.engine.ttft_s, patient.engine.fail_after = 0.1, 0
    async with patient.client:
        answer = await patient.post("/v1/completions", stream=True)
    assert answer.status_code == 200
    assert '"engine_lost"' in answer.text
    assert "[DONE]" not in answer.text
    assert not patient.engine.running


async def test_one_failed_prompt_ends_them_all(door: Door) -> None:
    door.engine.fail_after = 2
    answer = await door.post("/v1/completions", prompt=TEXTS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost")
    await asyncio.sleep(0)
    assert not door.engine.running


async def test_every_request_is_recorded_once_the_refused_ones_too(door: Door) -> None:
    await door.post("/v1/completions")
    await door.post("/v1/completions", temperature=-1)
    await door.post("/v1/completions", model="none")
    await door.client.post("/v1/chat/completions", json={}, headers={"Authorization": "Bearer nobody"})
    assert [(r.outcome, r.code) for r in door.records] == [
        ("done", None), ("refused", "invalid_value"), ("refused", "model_not_found"), ("refused", "invalid_api_key"),
    ]  # fmt: skip
    assert (door.records[0].output_tokens, door.records[0].model) == (8, "tiny")
    assert door.records[3].tenant_id is None
