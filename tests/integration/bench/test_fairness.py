"""The comparison's instruments against a server that answers in order of arrival; tests/perf holds them to numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.bench.fairness import Arena, Player, beside_refusals, neighbours, quantile, shares
from tests.support.known_server import KnownServer

SLOTS = 4
ANSWER_S = 0.02 + 19 * 0.01


@pytest.fixture(scope="module")
def arena(words_folder: Path) -> Iterator[Arena]:
    with KnownServer(words_folder, ttft_s=0.02, tpot_s=0.01, slots=SLOTS) as server:
        keys = dict.fromkeys(("heavy", "light", "flood"), server.key) | {"refused": "sk-unknown"}
        yield Arena("tiny", 500, keys, server.address, {})


def test_shares_go_by_requests_and_lengths_and_both_are_seen_to_wait(arena: Arena) -> None:
    told = shares(arena, [Player("heavy", 16, 20, 20, weight=3.0), Player("light", 8, 20, 10)], for_s=2, seed=0)
    assert told["share"]["heavy"] == pytest.approx(120 / 160, abs=0.12)
    assert all(min(waiting) > 0 for waiting in told["least_waiting"].values())
    assert told["errors"] == {}


def test_beside_a_flood_the_light_one_waits_for_all_who_came_before_it(arena: Arena) -> None:
    light, flood = Player("light", 1, 20, 5), Player("flood", 12, 20, 20)
    told = neighbours(arena, light, flood, 3, most_s=15, places=SLOTS, seed=1)
    assert quantile(told["ttft_s"], 0.5) > ANSWER_S
    assert told["least_waiting"] > 0


def test_a_flood_of_refusals_is_told_by_code(arena: Arena) -> None:
    told = beside_refusals(arena, Player("light", 1, 20, 5), Player("refused", 1, 20, 5), 50, 4, seed=0, least_s=4.0)
    assert set(told["flood"]["ended"]) == {"invalid_api_key"}
    assert (len(told["ttft_s"]), told["errors"]) == (4, {})
