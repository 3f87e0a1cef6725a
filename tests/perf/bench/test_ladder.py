"""`starserve bench ladder`, real at every rung: our stack, vLLM's server, and the peers in their own environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
PEERS = ROOT / "loadtest" / "peers"
OURS = ["bare engine", "vLLM's server", "starserve", "starserve, uncoalesced"]
OTHERS = ["LiteLLM, vLLM's server", "Ray Serve LLM", "Ray Serve LLM, uncoalesced", "Ray Serve LLM, direct"]


def starserve(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STARSERVE_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.full
@pytest.mark.timeout(2400)  # it installs two peers, and starts eight servers one after the other
def test_every_rung_answers_the_whole_trace_and_nothing_is_left_running(tmp_path: Path) -> None:
    subprocess.run([PEERS / "setup"], check=True)
    assert starserve("model", "prepare", cache=tmp_path).returncode == 0
    before, kept = {p.pid for p in psutil.process_iter()}, tmp_path / "ladder.json"
    done = starserve(
        "bench", "ladder", "--tiny", "--peers", str(PEERS), "--set", "engine.cores=1", "--streams", "4",
        "--output", "32", "--seconds", "2", "--rounds", "1", "--save", str(kept), cache=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rungs = json.loads(kept.read_text())["rungs"]
    assert set(rungs) == {*OURS, *OTHERS}
    for rounds in rungs.values():
        for told in rounds:
            assert told["output_tokens"] % 32 == 0 < told["output_tokens"]  # whole answers only
            assert told["cached_share"] == 0.0  # every prompt was new
            assert told["cpu_us_per_token"] > 0
            assert told["times"]["ttft_s"]["p50"] > 0
    # Both sides of what is said of coalescing: Ray Serve LLM keeps its first token 50 ms.
    assert (
        rungs["Ray Serve LLM"][0]["tokens_per_message"]
        > 1.3 * rungs["Ray Serve LLM, uncoalesced"][0]["tokens_per_message"]
    )
    assert rungs["Ray Serve LLM"][0]["times"]["ttft_s"]["p50"] > 0.05
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    assert not [p for p in left if any(str(tmp_path) in part for part in p.info["cmdline"] or ())]
