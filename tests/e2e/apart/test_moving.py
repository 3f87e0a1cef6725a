"""A line in front of one engine when another joins, real at every step: what waits is given back and answered there."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import Stack, count, tiny_model, wait_for

JOBS, TOKENS = 24, 700  # some 90 s for one engine alone, and another comes after 40


@pytest.mark.full
@pytest.mark.parametrize("choice", ["balanced", "affinity"])
def test_what_waits_for_one_engine_is_answered_by_another_that_joins(
    choice: str, starcoder_folder: Path, tmp_path: Path
) -> None:
    model = tiny_model(starcoder_folder, replicas=2, replica_choice=choice, cores=0.5, max_num_seqs=1)
    with Stack({"models": [model]}, tmp_path / "cache") as stack:
        stack.start().ready()
        replicas = stack.named("ray::ServeReplica:tested:engine-tiny")
        assert len(replicas) == 2
        replicas[0].kill()
        replicas[0].wait(20)
        time.sleep(1)  # until routers know
        with ThreadPoolExecutor(JOBS) as pool, stack.client() as client:

            def ask(i: int) -> Any:
                body = {"model": "tiny", "prompt": [20 + i] * 300, "max_tokens": TOKENS, "ignore_eos": True}
                return client.post("/v1/completions", json=body, timeout=300).json()

            replies = list(pool.map(ask, range(JOBS)))
        assert not [reply for reply in replies if "error" in reply]
        assert [reply["usage"]["completion_tokens"] for reply in replies] == [TOKENS] * JOBS
        wait_for(lambda: all(reply["id"] in stack.logged() for reply in replies), within_s=15)
        told = [line for line in stack.requests_logged() if line.get("output_tokens") == TOKENS]
        assert len(Counter(line["engine"] for line in told)) == 2, told
        assert max(line["queue_s"] for line in told) > 5
        assert count(stack.settled_metrics(), "starserve_queue_moved") > 0
