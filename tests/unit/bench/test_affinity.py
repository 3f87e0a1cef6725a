"""The conversations of `starserve bench affinity`, and what it makes of its rounds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from serve.bench.affinity import CHOICES, Conversations, doubts, table

TALK = Conversations(
    "tiny", vocabulary=1000, users=3, turns=3, each=2, preamble=10, opening=20, added=8, output=4, pause_s=0.0
)


def prompts(user: int, seed: int) -> list[Sequence[int]]:
    """Of all requests of one user."""
    load, draw = TALK.loads("")[user], random.Random(f"{seed}/{user}")
    return [load.requests(draw).body["prompt"] for _ in range(TALK.turns * TALK.each)]


def test_each_turn_begins_with_the_prompt_before_and_a_new_conversation_with_the_preamble() -> None:
    said = prompts(0, seed=0)
    assert [len(p) for p in said] == [30, 42, 54] * 2
    for before, after in pairwise(said):
        shared = len(before) if len(after) > len(before) else TALK.preamble
        assert after[:shared] == before[:shared]
    assert said[3][10:] != said[0][10:]


def test_both_choices_get_the_same_prompts_and_users_say_different_things() -> None:
    assert prompts(1, seed=0) == prompts(1, seed=0)
    assert prompts(1, seed=0) != prompts(1, seed=1)
    assert prompts(1, seed=0)[0][10:] != prompts(2, seed=0)[0][10:]


def test_what_could_be_found_again_is_the_prompt_before() -> None:
    assert TALK.repeated == (30 + 42) / (30 + 42 + 54)


def told(share: float, rate: float, **others: Any) -> dict[str, Any]:
    numbers = {"cached_share": share, "output_tokens_s": rate, "ttft_p50_s": 1 / rate, "ttft_p90_s": 2 / rate}
    return {"seed": 0, **numbers, "engines": {"a": 3, "b": 1}, "outcomes": {"done": 4}, "verdict": "VALID", **others}


def test_ratios_are_medians_over_pairs_of_rounds() -> None:
    found = {
        "balanced": [told(0.4, 10), told(0.5, 20), told(0.4, 30)],
        "affinity": [told(0.8, 20), told(0.5, 20), told(0.6, 45)],
    }
    head, balanced, affinity, ratio = table(found, TALK)
    assert (balanced[0], affinity[0]) == CHOICES
    assert dict(zip(head, ratio, strict=True)) == {
        "choice": "affinity ÷ balanced", "found in cache %": "1.50", "could be %": "", "tokens/s": "1.50",
        "TTFT p50 s": "0.67", "p90 s": "0.67", "requests per engine": "",
    }  # fmt: skip
    assert affinity[-1] == "9 / 3"


@pytest.mark.parametrize("change", [{"verdict": "INVALID: x"}, {"outcomes": {"done": 3, "refused": 1}}])
def test_rounds_that_must_not_be_used_are_named(change: dict[str, Any]) -> None:
    assert doubts({"balanced": [told(0.1, 1)], "affinity": [told(0.1, 1)]}) == []
    assert len(doubts({"balanced": [told(0.1, 1, **change)], "affinity": [told(0.1, 1)]})) == 1
