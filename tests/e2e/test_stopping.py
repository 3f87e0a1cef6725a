"""The end of the shared stack, after everything that its tests did to it: one answer runs, and is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest

from tests.support.deployment import LONG, Deployment
from tests.support.stack import Stack


class Stopped(NamedTuple):
    took_s: float
    processes: list[psutil.Process]  # that ran before
    mapped: set[str]  # shared memory, before
    streamed: str  # what the client of the long answer got
    refused: httpx.Response  # the first answer to a client that asked meanwhile and was not served


@pytest.fixture(scope="module")
def stopped(shared: Deployment) -> Iterator[Stopped]:
    stack = shared.stack
    processes = stack.below()
    assert [p for p in processes if p.status() == psutil.STATUS_ZOMBIE] == []
    mapped = {m.path for p in processes for m in p.memory_maps() if m.path.startswith("/dev/shm/")}
    # Eight times eight answers take many times as long as they may go on.
    long: dict[str, Any] = {"model": "tiny", "prompt": ["x"] * 8, "n": 8, "max_tokens": LONG, "ignore_eos": True}
    long["stream"] = True
    with (
        ThreadPoolExecutor(2) as pool,
        stack.client() as client,
        client.stream("POST", "/v1/completions", json=long) as answer,
    ):
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("data"))
        reading = pool.submit(lambda: "\n".join(lines))
        refusing = pool.submit(refused_by, stack)
        took_s = stack.stop()
        yield Stopped(took_s, processes, mapped, reading.result(30), refusing.result(30))


def refused_by(stack: Stack) -> httpx.Response:
    with stack.client() as client:
        while True:
            answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1})
            if answer.status_code != 200:
                return answer


def test_a_stop_leaves_no_process_no_port_and_no_shared_memory(stopped: Stopped, stack: Stack) -> None:
    assert stopped.took_s < 20
    assert stack.process.returncode == 0
    assert [p for p in stopped.processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert stopped.mapped
    assert [path for path in stopped.mapped if Path(path).exists()] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stack.address}/health/live")


def test_a_stop_tells_whoever_is_cut_and_whoever_comes(stopped: Stopped) -> None:
    last = [line for line in stopped.streamed.splitlines() if line.startswith("data")][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopped"
    assert "[DONE]" not in stopped.streamed
    assert (stopped.refused.status_code, stopped.refused.headers["retry-after"]) == (503, "5")
    assert stopped.refused.json()["error"]["code"] == "server_stopping"


def test_right_after_a_stop_the_ledger_has_what_the_engines_made(stopped: Stopped, shared: Deployment) -> None:
    """Nothing has to start again for that."""
    (row,) = json.loads(shared.ledger("check", "--json"))
    assert row["made_tokens"] == row["ledger_tokens"] > 0
    assert (row["lost_tokens"], row["lost_requests"], row["open_requests"]) == (0, 0, 0)
    assert re.search(r"stopped: [12] answers were cut", shared.stack.logged())
