"""The measuring client against a server whose times are known: what it counts, and which runs it calls invalid."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

from serve.bench.arrivals import Closed, Poisson, Trace
from serve.bench.client import Request
from serve.bench.load import Load, run
from serve.bench.summary import summary
from tests.support.known_server import KnownServer
from tests.support.measuring import measured, new_prompt, same_prompt


async def test_times_are_those_of_the_server_and_wait_for_whoever_came_before(words_folder: Path) -> None:
    """To 20 %; tests/perf holds the instruments to 2 ms. One at a time, 0.05 s each: 20 per second are answered."""
    with KnownServer(words_folder, ttft_s=0.2, tpot_s=0.02) as server:
        ran = await measured(server, Trace([i / 4 for i in range(4)]), 4)
    for known_s, found in ((0.2, [s.ttft_s or 0 for s in ran.samples]), (0.02, [s.tpot_s or 0 for s in ran.samples])):
        assert 0.9 * known_s < min(found) < 1.2 * known_s
    with KnownServer(words_folder, ttft_s=0.05, tpot_s=0.0, slots=1) as server:
        planned = await measured(server, Trace([i / 40 for i in range(40)]), 40)
        hidden = await measured(server, Closed(1), 10)
    waited = [s.ttft_s or 0 for s in sorted(planned.samples, key=lambda s: s.intended_s)]
    assert waited[-1] > 40 * 0.05 - 39 / 40  # due after 0.98 s, answered after 2 s
    assert max(s.ttft_s or 0 for s in hidden.samples) < waited[-1] / 2


async def test_a_stream_that_is_cut_in_the_middle_is_counted_as_failed(words_folder: Path) -> None:
    with KnownServer(words_folder, fail_after=5) as server:
        ran = await measured(server, Poisson(50), 10)
    numbers = summary(ran).all
    assert dict(numbers.outcomes) == {"error": 10}
    assert dict(numbers.codes) == {"engine_lost": 10}
    assert (numbers.requests_s, numbers.output_tokens_s) == (0.0, 0.0)


async def test_a_run_that_is_cut_off_tells_what_came_until_then(words_folder: Path) -> None:
    def counted(draw: random.Random) -> Request:
        request = new_prompt(draw)
        return Request(request.path, {**request.body, "stream_options": {"continuous_usage_stats": True}})

    with KnownServer(words_folder, ttft_s=0.1, tpot_s=0.1, slots=1) as server:
        load = Load("t", Closed(3), counted, server.key)
        ran = await run(server.address, [load], for_s=1.05, seed=0, cut=True)
    assert ran.wall_s < 2  # nobody waited for 20 tokens
    first, *waiting = sorted(ran.samples, key=lambda s: -s.output_tokens)
    assert first.outcome == "cut"
    assert 3 <= first.output_tokens <= 10
    assert {(s.outcome, s.output_tokens) for s in waiting} == {("cut", 0)}


async def test_a_warm_prefix_cache_of_prompts_meant_as_new_makes_a_run_invalid(words_folder: Path) -> None:
    with KnownServer(words_folder, ttft_s=0.02, caching=True) as server:
        fresh = summary(await measured(server, Poisson(50), 20))
        again = summary(await measured(server, Poisson(50), 20))  # the same seed: what a benchmark does when run twice
        other = summary(await measured(server, Poisson(50), 20, seed=1))
        one = summary(await measured(server, Poisson(50), 20, same_prompt))
    assert (fresh.verdict, fresh.all.cached_share) == ("VALID", 0.0)
    assert again.verdict.startswith("INVALID: the prefix cache was warm (80 %")  # 32 of 40 tokens: whole blocks
    assert other.verdict == "VALID"
    assert one.verdict.startswith("INVALID: the prefix cache was warm")


async def test_a_client_that_lags_behind_its_plan_makes_a_run_invalid(words_folder: Path) -> None:
    def slow(draw: random.Random) -> Request:
        time.sleep(0.05)  # what a client without time for its own work looks like
        return new_prompt(draw)

    with KnownServer(words_folder) as server:
        ran = await measured(server, Trace([0.01 * i for i in range(30)]), 30, slow)
    assert summary(ran).verdict.startswith("INVALID: the client lagged")


async def test_a_client_that_its_machine_does_not_run_makes_a_run_invalid(words_folder: Path) -> None:
    with KnownServer(words_folder) as server:
        ran = await measured(server, Poisson(50), 10)
    assert summary(ran).verdict == "VALID"
    starved = replace(ran, client_wait_s=0.1 * ran.wall_s)
    assert summary(starved).verdict.startswith("INVALID: the client was not run when it was ready (10 % of the time)")


async def test_a_server_that_is_not_there_is_unreachable_and_a_wrong_key_is_refused(words_folder: Path) -> None:
    with KnownServer(words_folder) as server:
        refused = await run(server.address, [Load("t", Poisson(50), new_prompt, "sk-wrong")], 60, 0, 3)
    gone = await run(server.address, [Load("t", Poisson(50), new_prompt)], 60, 0, 3)
    assert dict(summary(refused).all.outcomes) == {"refused": 3}
    assert dict(summary(refused).all.codes) == {"invalid_api_key": 3}
    assert dict(summary(gone).all.outcomes) == {"unreachable": 3}


async def test_tenants_are_told_apart(words_folder: Path) -> None:
    with KnownServer(words_folder, ttft_s=0.01) as server:
        loads = [Load(name, Poisson(rate), new_prompt, server.key) for name, rate in (("a", 5.0), ("b", 50.0))]
        told = summary(await run(server.address, loads, 2.0, 0))
    assert set(told.tenants) == {"a", "b"}
    assert told.tenants["b"].requests > 3 * told.tenants["a"].requests
    assert told.all.requests == sum(n.requests for n in told.tenants.values())
