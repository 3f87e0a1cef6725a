"""The comparison's own instruments, against a server that is known to answer in order of arrival."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.bench.fairness import Arena, Player, alone, beside_refusals, crowd, neighbours, quantile, shares
from serve.bench.fairness_tables import crowd_table, neighbours_table, refusals_table, shares_table
from serve.bench.turns_run import ARMS
from tests.support.known_server import KnownServer

TTFT_S, TPOT_S, SLOTS = 0.02, 0.01, 4


@pytest.fixture(scope="module")
def arena(words_folder: Path) -> Iterator[Arena]:
    with KnownServer(words_folder, ttft_s=TTFT_S, tpot_s=TPOT_S, slots=SLOTS) as server:
        keys = dict.fromkeys(("heavy", "light", "few", "many", "flood"), server.key) | {"refused": "sk-unknown"}
        yield Arena("tiny", 500, keys, server.address, {})


def test_in_order_of_arrival_shares_go_by_requests_and_lengths_and_both_are_seen_to_wait(arena: Arena) -> None:
    heavy, light = Player("heavy", 16, 20, 20, weight=3.0), Player("light", 8, 20, 10)
    told = shares(arena, [heavy, light], for_s=6, seed=0)
    # Served in turn: of three answers two are heavy, (20 + 2 * 20) each, beside one light, (20 + 2 * 10).
    assert told["share"]["heavy"] == pytest.approx(120 / 160, abs=0.05)
    assert told["fair_share"] == {"heavy": 0.75, "light": 0.25}
    assert min(told["least_waiting"]["heavy"]) > 0
    assert min(told["least_waiting"]["light"]) > 0
    assert told["errors"] == {}
    head, row = shares_table([{"arm": "known", "weights": [3, 1], **told}])
    assert dict(zip(head, row, strict=True))["fair"] == "3.00"


def test_what_is_due_to_a_few_is_what_they_make_alone_where_that_is_less_than_their_share(arena: Arena) -> None:
    told = crowd(arena, Player("few", 1, 20, 10), Player("many", 12, 20, 10), for_s=6, seed=0)
    assert told["due"] == pytest.approx(1 / SLOTS, abs=0.06)  # one of four at work at a time
    assert told["got"] == pytest.approx(1 / 13, abs=0.03)  # and one of thirteen in line
    head, row = crowd_table([{"arm": "known", "places": SLOTS, **told}])
    assert float(dict(zip(head, row, strict=True))["got ÷ due"]) < 0.5


def test_beside_a_flood_the_light_one_waits_for_all_who_came_before_it(arena: Arena) -> None:
    light, flood = Player("light", 1, 20, 5), Player("flood", 12, 20, 20)
    by_itself = alone(arena, light, 5, seed=0)
    told = neighbours(arena, light, flood, 10, most_s=30, places=SLOTS, seed=1)
    assert by_itself["ttft_s"][0] == pytest.approx(TTFT_S, abs=0.02)
    assert told["step_s"] == pytest.approx(TPOT_S, rel=0.3)
    # Eight or so before it, four at a time, each 0.02 + 19 * 0.01 s.
    assert quantile(told["ttft_s"], 0.5) == pytest.approx(3 * 0.21, rel=0.5)
    # Each of four is between its first and last token for 0.19 of its 0.21 s, less where the machine is late.
    assert 0.5 < told["full"] < 0.98
    assert told["least_waiting"] > 0
    rows = neighbours_table([{"arm": "fcfs", "alone": by_itself, **told}])
    assert dict(zip(*rows, strict=True))["÷ fcfs p95"] == "1.000"


def test_a_flood_of_refusals_keeps_its_rate_and_is_told_by_code(arena: Arena) -> None:
    told = beside_refusals(arena, Player("light", 1, 20, 5), Player("refused", 1, 20, 5), 100, 20, seed=0)
    assert set(told["flood"]["ended"]) == {"invalid_api_key"}
    assert told["flood"]["sent"] / told["flood"]["seconds"] == pytest.approx(100, rel=0.2)
    assert len(told["ttft_s"]) == 20
    assert told["errors"] == {}
    assert refusals_table(told)[1][1].startswith("invalid_api_key ")


@pytest.mark.full
def test_the_command_shows_that_the_fair_queue_is_fairer_than_the_order_of_arrival(tmp_path: Path) -> None:
    saved = tmp_path / "fairness.json"
    prepared = starserve("model", "prepare", cache=tmp_path)
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    done = starserve(
        "bench", "fairness", "--tiny", "--weights", "1", "--seconds", "30", "--requests", "0", "--crowd", "0",
        "--flood", "0", "--rounds", "1", "--set", "engine.max_num_seqs=4", "--set", "engine.cores=1",
        "--save", str(saved), cache=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(saved.read_text())
    fair, in_order = (told["share"]["heavy"] for told in report["shares"])
    assert 0.35 < fair < 0.65 < 0.9 < in_order
    assert {run["arm"] for run in report["cost"]} == set(ARMS)
    assert all(run["output_tokens_s"] > 0 for run in report["cost"])
    assert all((run["interactive"] > 0) == ARMS[run["arm"]].interactive for run in report["cost"])


def starserve(*words: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-m", "serve", *words], {**os.environ, "STARSERVE_CACHE": str(cache)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
