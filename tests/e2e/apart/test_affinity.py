"""Two engines, real at every step: turns of a conversation find their cache, also behind two routers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, tiny_model, wait_for

TURNS = 5
TOKENS = 256  # of each turn: whole blocks of the cache, whose blocks on CPUs have 128 tokens


@pytest.fixture(scope="module")
def stack(starcoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    model = tiny_model(starcoder_folder, replicas=2, replica_choice="affinity", cores=0.5)
    settings = {"models": [model], "router": {"replicas": 2, "cores": 0.25}}
    with Stack(settings, tmp_path_factory.mktemp("cache")) as started:
        yield started.start().ready()


def ask(client: httpx.Client, prompt: list[int] | list[list[int]]) -> Any:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def engines_of(stack: Stack, replies: list[Any]) -> list[str]:
    """Who answered each, by the log."""
    wait_for(lambda: all(reply["id"] in stack.logged() for reply in replies), within_s=15)
    told = {line["request_id"]: line.get("engine", "") for line in stack.requests_logged()}
    return [told[reply["id"]] for reply in replies]


@pytest.mark.full
def test_turns_of_a_conversation_find_their_cache_and_conversations_use_both_engines(stack: Stack) -> None:
    used, draw = set[str](), random.Random(0)
    with stack.client() as client:
        for _ in range(12):
            said, replies = list[int](), list[Any]()
            for turn in range(TURNS):
                said += [draw.randrange(20, 200) for _ in range(TOKENS)]
                replies.append(ask(client, said))
                cached = replies[-1]["usage"]["prompt_tokens_details"]["cached_tokens"]
                assert cached == turn * TOKENS
            (engine,) = set(engines_of(stack, replies))
            used.add(engine)
    assert len(used) == 2


@pytest.mark.full
def test_all_prompts_of_one_request_are_answered(stack: Stack) -> None:
    draw = random.Random(1)
    prompts = [[draw.randrange(20, 200) for _ in range(200)] for _ in range(16)]
    with stack.client() as client:
        assert len(ask(client, prompts)["choices"]) == 16


@pytest.mark.full
def test_when_an_engine_dies_its_conversations_go_on_elsewhere_and_the_others_stay(stack: Stack) -> None:
    draw = random.Random(2)
    talks = [[draw.randrange(20, 200) for _ in range(TOKENS)] for _ in range(12)]
    with stack.client() as client:
        homes = engines_of(stack, [ask(client, said) for said in talks])
        assert len(set(homes)) == 2
        stack.named("VLLM::EngineCore")[0].kill()
        died = time.monotonic()
        for said in talks:
            wait_for(partial(answers, client, said), within_s=60)
        replies = [ask(client, [*said, *said]) for said in talks]
    assert time.monotonic() - died < 60
    now = engines_of(stack, replies)
    (dead,) = set(homes) - set(now)
    stayed = [place for place, home in enumerate(homes) if home != dead]
    assert [now[i] for i in stayed] == [homes[i] for i in stayed]
    assert {replies[i]["usage"]["prompt_tokens_details"]["cached_tokens"] for i in stayed} == {TOKENS}


def answers(client: httpx.Client, prompt: list[int]) -> bool:
    return client.post("/v1/completions", json={"model": "tiny", "prompt": prompt, "max_tokens": 1}).status_code == 200


@pytest.mark.full
def test_when_no_engine_is_left_it_is_told_within_seconds(stack: Stack) -> None:
    draw = random.Random(3)
    with stack.client() as client:
        for process in stack.named("VLLM::EngineCore"):
            process.kill()
        for _ in range(3):
            asked = time.monotonic()
            body = {"model": "tiny", "prompt": [draw.randrange(20, 200) for _ in range(TOKENS)]}
            refused = client.post("/v1/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
            assert time.monotonic() - asked < 15
