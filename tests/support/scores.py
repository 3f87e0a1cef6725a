"""What is served of PROMPT, against what the engine itself says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from serve.engines.vllm import VllmEngine
from serve.words import TokenLogprob
from tests.support.starcoder.models import PROMPT, bare_answer, ids_of

Choices = Callable[..., Awaitable[list[Any]]]  # fields of a completion of PROMPT → its choices
Check = Callable[[Choices, VllmEngine, Path], Awaitable[None]]


def assert_scores(served: dict[str, Any], scores: Any) -> None:
    """The served object says what these TokenLogprobs say, within 1e-6."""
    expected: list[TokenLogprob] = list(scores)
    assert len(expected) == len(served["token_logprobs"]) > 4
    for value, top, score in zip(served["token_logprobs"], served["top_logprobs"], expected, strict=True):
        assert value == (None if score.logprob is None else pytest.approx(score.logprob, abs=1e-6))
        if score.logprob is not None:
            likeliest = sorted({*dict(score.top).values(), score.logprob})
            assert sorted(top.values()) == pytest.approx(likeliest, abs=1e-6)


async def assert_logprobs_are_the_engines(choices: Choices, engine: VllmEngine, folder: Path) -> None:
    (served,) = await choices(max_tokens=24, temperature=0, logprobs=5)
    events = await bare_answer(engine, ids_of(folder), temperature=0.0, logprobs=5)
    assert served["text"] == "".join(event.text for event in events)
    assert_scores(served["logprobs"], [s for event in events for s in event.logprobs or ()])


async def assert_echo_scores_are_the_engines(choices: Choices, engine: VllmEngine, folder: Path) -> None:
    ids = ids_of(folder)
    events = await bare_answer(engine, ids, max_tokens=1, logprobs=5, prompt_logprobs=5)
    assert events[0].start is not None
    for prompt in (PROMPT, ids):
        (served,) = await choices(prompt=prompt, max_tokens=0, echo=True, logprobs=5)
        assert served["text"] == PROMPT
        assert_scores(served["logprobs"], events[0].start.prompt_logprobs or ())


async def assert_choices_of_a_seed_are_the_engines(choices: Choices, engine: VllmEngine, folder: Path) -> None:
    asked = {"max_tokens": 24, "n": 3, "temperature": 1.0, "return_token_ids": True}
    first, again, other = [await choices(**asked, seed=seed) for seed in (11, 11, 12)]
    served = [choice["token_ids"] for choice in first]
    events = await bare_answer(engine, ids_of(folder), n=3, seed=11)
    assert served == [[i for e in events if e.choice == c for i in e.token_ids] for c in range(3)]
    assert served == [choice["token_ids"] for choice in again]
    assert served != [choice["token_ids"] for choice in other]
    assert len({tuple(ids) for ids in served}) == 3
