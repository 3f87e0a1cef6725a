"""What every engine promises, asked of the fake and of the real one."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve.engines.base import Engine
from serve.engines.fake import FakeEngine
from serve.engines.outputs import OutputReader
from serve.engines.vllm import pause_s
from serve.errors import BadRequest, GenerationFailed
from serve.tokens import Vocabulary
from serve.words import Event, Job, Sampling, Secret

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
]
GREEDY = Sampling(max_tokens=32, temperature=0.0, top_p=1.0)
JOB = Job("job", (300, 301, 302), GREEDY, Secret("salt"))


@pytest.fixture(params=["fake", "vllm"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        return FakeEngine(tpot_s=0.002)
    real: Engine = request.getfixturevalue("vllm_engine")
    return real


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
    assert [event.start is not None for event in events] == [True] + [False] * (len(events) - 1)
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


async def test_several_choices_each_finish_once_and_are_counted_together(engine: Engine) -> None:
    events = await answer(engine, n=3, temperature=1.0, seed=7)
    assert sorted(event.choice for event in events if event.finish) == [0, 1, 2]
    assert [event.usage is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert [event.start is not None for event in events] == [True] + [False] * (len(events) - 1)
    assert events[-1].usage is not None
    assert events[-1].usage[:2] == (3, 96)
    made = {choice: [i for e in events if e.choice == choice for i in e.token_ids] for choice in range(3)}
    assert len({tuple(ids) for ids in made.values()}) == 3


async def test_each_token_has_its_logprob_and_its_likeliest_rivals(engine: Engine) -> None:
    scored = [s for event in await answer(engine, logprobs=3) for s in event.logprobs or ()]
    assert [s.token_id for s in scored] == ids(await answer(engine))
    for score in scored:
        assert score.logprob is not None
        assert score.logprob <= 0
        assert [logprob for _, logprob in score.top] == sorted((logprob for _, logprob in score.top), reverse=True)
        assert score.top[0] == (score.token_id, score.logprob)  # greedy
        assert len(score.top) == 3
    assert all(event.logprobs is None for event in await answer(engine))


async def test_a_prompt_can_be_scored(engine: Engine) -> None:
    start = (await answer(engine, prompt_logprobs=2))[0].start
    assert start is not None
    assert start.prompt_logprobs is not None
    assert [s.token_id for s in start.prompt_logprobs] == list(JOB.prompt_ids)
    assert [s.logprob is None for s in start.prompt_logprobs] == [True, False, False]
    assert [len(s.top) for s in start.prompt_logprobs] == [0, 2, 2]


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
    with pytest.raises(BadRequest, match="not possible"):
        await answer(engine, prompt_ids=(10**6,))
    assert len(await answer(engine)) > 0


async def test_the_real_engine_heeds_every_switch(engine: Engine) -> None:
    """Each of them changes a greedy answer in the way that its name promises."""
    if isinstance(engine, FakeEngine):
        return
    plain = ids(await answer(engine))
    assert ids(await answer(engine, logit_bias=((plain[0], -100.0),)))[0] != plain[0]
    assert ids(await answer(engine, logit_bias=((77, 100.0),))) == [77] * 32
    assert ids(await answer(engine, stop_token_ids=(plain[4],))) == plain[: plain.index(plain[4]) + 1]
    at_least = await answer(engine, stop_token_ids=(plain[4],), min_tokens=20)
    assert len(ids(at_least)) >= 20
    assert plain[4] not in ids(at_least)[:19]
    assert ids(await answer(engine, temperature=2.0, top_k=1)) == plain
    assert ids(await answer(engine, temperature=2.0, min_p=1.0)) == plain
    biased = {"logit_bias": ((77, 30.0),)}
    assert ids(await answer(engine, **biased)) != ids(await answer(engine, **biased, repetition_penalty=50.0))
    assert ids(await answer(engine, **biased)) != ids(await answer(engine, **biased, frequency_penalty=2.0))
    ended = {"logit_bias": ((0, 100.0),), "skip_special_tokens": False}
    assert ids(await answer(engine, **ended)) == [0]
    onward = await answer(engine, **ended, ignore_eos=True)
    assert ids(onward) == [0] * 32
    assert onward[0].text == "<|endoftext|>"


async def test_the_real_engine_writes_json_that_obeys_a_schema(engine: Engine) -> None:
    if isinstance(engine, FakeEngine):
        return
    fields = {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}}
    schema = json.dumps({"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False})
    events = await answer(engine, json_schema=schema, max_tokens=200, temperature=1.0, seed=1)
    written = json.loads("".join(event.text for event in events))
    assert events[-1].finish == "stop"
    assert written["a"] in ("x", "y")
    assert isinstance(written["b"], bool)


async def test_an_answer_that_the_engine_gives_up_ends_alone_and_the_engine_lives(
    engine: Engine, starcoder_folder: Path
) -> None:
    """Told to end with the very tokens that its grammar begins with, vLLM has none left to choose from."""
    if isinstance(engine, FakeEngine):
        return
    words = Vocabulary(starcoder_folder)
    begins = tuple(i for i in range(words.size) if words.spell(i).lstrip().startswith(b"{"))
    assert begins
    other = asyncio.create_task(answer(engine, max_tokens=200, ignore_eos=True))
    with pytest.raises(GenerationFailed) as given_up:
        await answer(engine, json_schema='{"type":"object"}', stop_token_ids=begins)
    assert given_up.value.retry_after_s is None
    await engine.check()
    assert len(ids(await other)) == 200
    assert len(ids(await answer(engine))) == 32


async def test_tokens_come_one_by_one_alone_and_share_messages_in_a_crowd(engine: Engine) -> None:
    if isinstance(engine, FakeEngine):
        return
    # A slow reader may find two at once: of three answers the one that the machine disturbed least.
    alone = max([await answer(engine, max_tokens=64, logprobs=1) for _ in range(3)], key=len)
    # So many that the pause is longer than a step also where the machine is busy.
    crowd = await asyncio.gather(*(answer(engine, max_tokens=64, logprobs=1) for _ in range(32)))
    assert len(alone) > 56
    assert statistics.mean(map(len, crowd)) < 48
    for events in crowd:
        assert len(ids(events)) == 64
        assert all(len(event.logprobs or ()) == len(event.token_ids) for event in events)


async def test_an_ask_that_waits_for_its_turn_tells_how_long(engine: Engine) -> None:
    """Nine at once for eight places."""
    if isinstance(engine, FakeEngine):
        return
    answers = await asyncio.gather(*(answer(engine, max_tokens=64, ignore_eos=True) for _ in range(9)))
    waits = [event.start.queue_s for events in answers for event in events if event.start]
    assert len(waits) == 9
    assert max(waits) > 10 * sorted(waits)[4]


async def test_an_engine_that_waits_for_work_leaves_the_cores_to_others_at_once(engine: Engine) -> None:
    """Left to itself, vLLM looks for messages without pause for a second: two processes, two cores."""
    if isinstance(engine, FakeEngine):
        return
    below = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("VLLM::")]
    assert len(below) == 2
    await answer(engine)
    before = [p.cpu_times() for p in below]
    await asyncio.sleep(0.5)
    after = [p.cpu_times() for p in below]
    used_s = sum(b.user + b.system - a.user - a.system for a, b in zip(before, after, strict=True))
    assert used_s < 0.4


async def test_an_answer_waits_longer_for_company_the_more_there_are_and_never_longer_than_allowed() -> None:
    assert [pause_s(running, 0.02) for running in (0, 1, 2, 6, 500)] == [0, 0, 0.002, 0.01, 0.02]
    assert pause_s(500, 0) == 0


async def test_no_answer_waits_beyond_its_own_expected_end() -> None:
    reader = OutputReader(replace(JOB, sampling=replace(GREEDY, max_tokens=11)))
    assert pause_s(500, 0.02, reader.left_s(1.0)) == 0.02  # nothing is known yet
    reader.made = 6
    assert reader.left_s(0.01) == pytest.approx(0.01)  # five in 0.01 s, and five are left
    assert pause_s(500, 0.02, reader.left_s(0.01)) == pytest.approx(0.01)
