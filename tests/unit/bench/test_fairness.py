"""The players of `starserve bench fairness`, and what it makes of its runs."""

from __future__ import annotations

import random
from typing import Any

from serve.bench.fairness import Arena, Player
from serve.bench.fairness_tables import cost_table
from serve.bench.turns_run import ARMS


def test_varied_lengths_lie_around_the_given_one() -> None:
    arena, draw = Arena("tiny", 500, {}, "", {}), random.Random(0)
    lengths = {arena.request(Player("t", 1, 4, 20, varied=True), draw).body["max_tokens"] for _ in range(400)}
    assert lengths == set(range(10, 31))
    assert arena.request(Player("t", 1, 4, 20), draw).body["max_tokens"] == 20


def test_a_staggered_flood_begins_with_answers_of_any_length_and_goes_on_with_its_own() -> None:
    load, draw = Arena("tiny", 500, {"t": ""}, "", {}).load(Player("t", 1, 4, 20), staggered=300), random.Random(0)
    lengths = [load.requests(draw).body["max_tokens"] for _ in range(320)]
    assert set(lengths[:300]) == set(range(1, 21))
    assert lengths[300:] == [20] * 20


def test_the_cost_of_a_queue_is_the_median_of_ratios_within_a_round() -> None:
    def run(arm: str, output_tokens_s: float) -> dict[str, Any]:
        return {"arm": arm, "output_tokens_s": output_tokens_s, "cpu_us_per_token": 10.0, "interactive": 64}

    # The machine was half as fast in the second round: the ratios do not know.
    found = [run("fair", 99), run("fcfs", 100), run("fair", 50), run("fcfs", 50), run("fair", 97), run("fcfs", 100)]
    head, fair, in_order = cost_table(found)
    told = dict(zip(head, fair, strict=True))
    assert [told[name] for name in ("compared with", "ratio", "lowest", "highest")] == [
        "fcfs",
        "0.990",
        "0.970",
        "1.000",
    ]
    assert dict(zip(head, in_order, strict=True))["ratio"] == "1.000"


def test_a_reserve_is_compared_with_the_same_load_without_one() -> None:
    found = [{"arm": arm, "output_tokens_s": 100.0, "cpu_us_per_token": 1.0, "interactive": 0} for arm in ARMS]
    assert [row[3] for row in cost_table(found)[1:]] == ["fcfs", "fcfs", "fcfs", "fair, beside interactive"]
