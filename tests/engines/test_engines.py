"""What every engine promises, asked of the fake and of the real one."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from serve.engines.base import Engine
from serve.engines.fake import FakeEngine
from serve.engines.vllm import VllmEngine
from serve.errors import BadRequest
from serve.settings import parse
from serve.words import Event, Job, Sampling, Secret
from tests.stack import tiny_model

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),  # vLLM leaves ZeroMQ's to the collector
]
GREEDY = Sampling(max_tokens=32, temperature=0.0, top_p=1.0)
JOB = Job("job", (300, 301, 302), GREEDY, Secret("salt"))


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fake", "vllm"])
async def engine(request: pytest.FixtureRequest, starcoder_folder: Path) -> AsyncIterator[Engine]:
    if request.param == "fake":
        yield FakeEngine(tpot_s=0.002)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's and torch's imports warn about themselves
        real = VllmEngine(parse({"models": [tiny_model(starcoder_folder)]}).models[0], starcoder_folder)
    yield real
    real.stop()


def running(engine: Engine) -> int:
    return len(engine.running) if isinstance(engine, FakeEngine) else int(getattr(engine, "running"))  # noqa: B009


async def answer(engine: Engine, **changes: Any) -> list[Event]:
    prompt = changes.pop("prompt_ids", JOB.prompt_ids)
    job = replace(JOB, job_id=f"job-{time.monotonic_ns()}", prompt_ids=prompt, sampling=replace(GREEDY, **changes))
    async with aclosing(engine.generate(job)) as events:
        return [event async for event in events]


async def test_exactly_one_event_finishes_and_it_counts_what_was_made(engine: Engine) -> None:
    events = await answer(engine)
    assert [event.finish for event in events if event.finish] == ["length"]
    assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)
    usage = events[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 32)
    assert sum(len(event.token_ids) for event in events) == 32


def ids(events: list[Event]) -> list[int]:
    return [i for event in events for i in event.token_ids]


async def test_a_greedy_answer_is_the_same_alone_and_in_a_crowd(engine: Engine) -> None:
    alone = ids(await answer(engine))
    crowd = await asyncio.gather(*(answer(engine, prompt_ids=(300 + i, 301, 302)) for i in range(6)))
    assert ids(crowd[0]) == alone
    assert len({tuple(ids(events)) for events in crowd}) == 6


async def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    whole = "".join(event.text for event in await answer(engine))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    events = await answer(engine, stop=(stop,))
    assert "".join(event.text for event in events) == whole[: whole.index(stop)]
    assert events[-1].finish == "stop"


async def test_a_seed_repeats_a_sampled_answer(engine: Engine) -> None:
    first, second = [await answer(engine, temperature=1.0, seed=7) for _ in range(2)]
    assert ids(first) == ids(second)


async def test_closing_an_answer_frees_the_engine(engine: Engine) -> None:
    events = engine.generate(replace(JOB, job_id="left", sampling=replace(GREEDY, max_tokens=1500)))
    await anext(events)
    assert running(engine) == 1
    await events.aclose()
    left = time.monotonic()
    while running(engine):
        await asyncio.sleep(0.01)
        assert time.monotonic() - left < 2
    await engine.check()


async def test_a_job_that_the_real_engine_cannot_take_is_a_bad_request_and_it_lives(engine: Engine) -> None:
    if isinstance(engine, FakeEngine):
        return
    with pytest.raises(BadRequest, match="refuses"):
        await answer(engine, prompt_ids=(10**6,))
    assert len(await answer(engine)) > 0
