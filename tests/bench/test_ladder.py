"""`starserve bench ladder`, real at every rung, with the tiny StarCoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.stack import tiny_model

pytestmark = pytest.mark.full


def test_every_rung_answers_the_whole_trace_and_nothing_is_left_running(starcoder_folder: Path, tmp_path: Path) -> None:
    config, kept = tmp_path / "c.yaml", tmp_path / "ladder.json"
    config.write_text(yaml.safe_dump({"models": [tiny_model(starcoder_folder)]}))
    told = {**os.environ, "STARSERVE_CACHE": str(tmp_path / "cache")}
    starserve = [sys.executable, "-m", "serve"]
    subprocess.run([*starserve, "model", "prepare", str(config)], check=True, env=told)
    before = {p.pid for p in psutil.process_iter()}
    options = ["--streams", "4", "--output", "32", "--seconds", "2", "--rounds", "2", "--save", str(kept)]
    done = subprocess.run(
        [*starserve, "bench", "ladder", str(config), *options], capture_output=True, text=True, env=told
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rungs = json.loads(kept.read_text())["rungs"]
    assert list(rungs) == ["bare engine", "vLLM's server", "starserve"]
    for rounds in rungs.values():
        assert len(rounds) == 2
        for told_round in rounds:
            assert told_round["output_tokens"] % 32 == 0 < told_round["output_tokens"]  # whole answers only
            assert told_round["cached_share"] == 0.0  # every prompt was new
            assert told_round["cpu_us_per_token"] > 0
            assert told_round["times"]["ttft_s"]["p50"] > 0
    left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before]
    assert not [p for p in left if any(str(tmp_path) in part for part in p.info["cmdline"] or ())]
