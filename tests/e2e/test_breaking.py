"""What breaks a stack, on one of its own: killed routers and engines, a crash, a second signal. The order matters.

The shared stack beside it must not feel any of it.
"""

from __future__ import annotations

import re
import signal
import time

import psutil
import pytest

from tests.support.deployment import LONG, Deployment, ask, broken_streams
from tests.support.stack import Stack, wait_for

CLUSTER = pytest.param("cluster", marks=pytest.mark.full)
with_cluster = pytest.mark.parametrize("variant", ["haproxy", CLUSTER], indirect=True)
alone = pytest.mark.parametrize("variant", ["haproxy"], indirect=True)


@pytest.fixture(scope="session")
def keys(own: Deployment) -> dict[str, str]:
    """Of two tenants."""
    made = own.enrol("breaking", many={}, few={})
    wait_for(lambda: {ask(own, made["few"], path="/v1/models").status_code for _ in range(6)} == {200}, within_s=30)
    return made


@alone
def test_ray_is_started_once_more_when_it_ends_while_it_starts(own: Deployment) -> None:
    assert "Ray ended while it started; trying once more" in own.stack.said()
    assert answers(own.stack)


@alone
def test_instances_that_start_at_once_live_side_by_side(own: Deployment, stack: Stack) -> None:
    assert answers(stack)
    assert answers(own.stack)


@with_cluster
def test_rows_of_a_killed_router_close_with_what_the_engines_made(own: Deployment, keys: dict[str, str]) -> None:
    before = {row["request_id"] for row in own.settled()}
    routers = own.stack.named("ray::ServeReplica:tested:router")
    with broken_streams(own, keys["many"], 6):
        for router in routers:
            router.kill()
    wait_for(lambda: ask(own, keys["few"]).status_code == 200, within_s=60)
    found = [row for row in own.settled() if row["request_id"] not in before]
    lost = [row for row in found if row["code"] == "router_lost"]
    assert len(lost) == 6
    assert all(row["output_tokens"] > 0 for row in lost)
    assert sum(row["output_tokens"] for row in own.rows()) == own.probe.output_tokens()


@with_cluster
def test_rows_of_a_killed_engine_have_what_the_routers_received(own: Deployment, keys: dict[str, str]) -> None:
    before = {row["request_id"] for row in own.settled()}
    engines = own.stack.named("ray::ServeReplica:tested:engine-tiny")
    with broken_streams(own, keys["many"], 4):
        for engine in engines:
            engine.kill()
    wait_for(lambda: ask(own, keys["few"]).status_code == 200, within_s=120)
    found = [row for row in own.settled() if row["request_id"] not in before]
    logged = {line["request_id"]: line["output_tokens"] for line in own.stack.requests_logged()}
    lost = [row for row in found if row["outcome"] == "lost"]
    assert len(lost) == 4
    assert all(row["output_tokens"] == logged[row["request_id"]] > 0 for row in lost)
    told = own.ledger("check")
    made, billed, unreceived, requests, still_open = (int(number) for number in re.findall(r"\d+", told)[1:])
    print(told)  # what was lost differs from run to run
    assert billed == sum(row["output_tokens"] for row in own.rows())
    assert made == billed + unreceived
    assert (requests, still_open) == (sum(row["outcome"] == "lost" for row in own.rows()), 0)


def test_a_dead_engine_is_told_and_another_answers_within_a_minute(own: Deployment) -> None:
    stack = own.stack
    with stack.client() as client:
        body = {"model": "tiny", "prompt": "x", "max_tokens": LONG, "ignore_eos": True}
        cores = stack.named("VLLM::EngineCore")
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(line for line in lines if line.startswith("data"))
            for process in cores:
                process.kill()
            died = time.monotonic()
            rest = "".join(lines)
        assert '"code":"engine_lost"' in rest
        assert "[DONE]" not in rest
        refused = client.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert client.get("/health").status_code == 503
        wait_for(lambda: client.get("/health").status_code == 200, within_s=60, told=stack.last_logged)
        assert client.post("/v1/completions", json={**body, "max_tokens": 2}).status_code == 200
        assert time.monotonic() - died < 60


@alone
def test_a_start_after_a_crash_cleans_up_and_leaves_the_neighbour_alone(own: Deployment, stack: Stack) -> None:
    broken = own.stack
    # HAProxy is started anew whenever its servers change, and written down within seconds.
    wait_for(lambda: {p.pid for p in broken.named("haproxy")} <= broken.recorded(), within_s=60)
    # All at once, so that no part can tidy up after another. HAProxy does not end by itself, and holds the port.
    left = [*broken.below(), psutil.Process(broken.process.pid)]
    (proxy,) = broken.named("bin/haproxy")
    for process in left:
        if process != proxy:
            process.kill()
    broken.process.wait(10)
    broken.forget(proxy.pid)  # as if it had been born after the last record
    assert answers(stack)
    assert runs(proxy)
    broken.start().ready()
    assert "that an earlier instance had left" in broken.said()
    assert not any(runs(process) for process in left)
    assert answers(broken)
    assert answers(stack)


@alone
def test_a_second_signal_ends_it_at_once_and_the_neighbour_lives(own: Deployment, stack: Stack) -> None:
    below = own.stack.below()
    own.stack.signal(signal.SIGTERM)
    time.sleep(0.3)
    again = time.monotonic()
    own.stack.signal(signal.SIGTERM)
    own.stack.process.wait(30)
    assert time.monotonic() - again < 5
    assert not any(runs(process) for process in below)
    assert answers(stack)


def answers(stack: Stack) -> bool:
    with stack.client() as client:
        return client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 2}).status_code == 200


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
