"""`starserve bench batch` on the real engine with the tiny StarCoder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import cli
from tests.support.stack import tiny_model, wait_for


@pytest.fixture(scope="module")
def config(starcoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared deployment of the tiny StarCoder, four sequences at a time."""
    folder = tmp_path_factory.mktemp("batch")
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"models": [tiny_model(starcoder_folder, max_num_seqs=4)]}))
    prepared = CliRunner().invoke(cli, ["model", "prepare", str(path)], env=environment(folder))
    assert prepared.exit_code == 0, prepared.output
    return path


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "STARSERVE_CACHE": str(folder / "cache")}


def bench(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serve", "bench", "batch", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment(config.parent))


def test_runs_are_counted_beside_static_batches_of_the_same_prompts(config: Path, tmp_path: Path) -> None:
    kept = tmp_path / "report.json"
    done = bench(config, "--prompts", "24/16x12", "--hugging-face", "--price-per-hour", "3.6", "--save", str(kept))
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(kept.read_text())
    runs, beside = report["details"]["runs"], report["details"]["hugging_face"]
    assert len(runs) == len(beside) == 3
    for run in (*runs, *beside):
        assert (run["requests"], run["output_tokens"]) == (12, 12 * 16)
    for run in runs:
        assert (run["prompt_tokens"], run["cached_tokens"]) == (12 * 24, 0)  # no run finds another's blocks
        assert 1 < run["mean_batch"] <= 4
        assert 0 < run["percent_of_roofline"] < 100
        assert run["percent_of_roofline"] == pytest.approx(100 * max(run["mbu"], run["mfu"]))
        assert run["price_per_million_tokens"] == pytest.approx(1000 / run["output_tokens_s"])
        assert run["output_tokens_s"] == pytest.approx(12 * 16 / run["wall_s"])
    assert report["conditions"]["engine.max_num_seqs"] == 4
    assert report["conditions"]["prompts.number"] == 12
    assert "ours ÷ Hugging Face" in done.stdout


def test_a_dataset_is_resumed_after_a_kill_with_nothing_twice_and_nothing_missing(config: Path, tmp_path: Path) -> None:
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    rows: list[Any] = [{"custom_id": f"q{i}", "prompt": f"def f{i}(", "max_tokens": 120} for i in range(24)]
    rows[7] = {"custom_id": "bad", "prompt": "x", "temprature": 1}
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    options = ["bench", "batch", str(config), "--prompts", str(asked), "--answers", str(answers)]
    command, told = [sys.executable, "-m", "serve", *options], environment(config.parent)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=told) as first:
        wait_for(lambda: answers.exists() and answers.read_bytes().count(b"\n") >= 3, within_s=120)
        below = psutil.Process(first.pid).children(recursive=True)
        for process in (psutil.Process(first.pid), *below):
            process.send_signal(signal.SIGSTOP)  # in the middle of its work, for as long as we look
        refused = CliRunner().invoke(cli, options, env=told)
        assert (refused.exit_code, "another run is writing to it" in refused.output) == (1, True)
        for process in (psutil.Process(first.pid), *below):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(below, timeout=10)
    before = answers.read_bytes()
    assert before.count(b"\n") < 25
    with answers.open("ab") as file:
        file.write(b'{"id": "half a li')  # what a kill in the middle of a write leaves
    done = subprocess.run(command, capture_output=True, text=True, env=told)
    assert done.returncode == 0, done.stdout + done.stderr
    assert answers.read_bytes().startswith(before)  # kept, not asked again
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert Counter(row["custom_id"] for row in found) == Counter([*(r["custom_id"] for r in rows), "line-25"])
    by_id = {row["custom_id"]: row["response"] for row in found}
    assert by_id["bad"]["body"]["error"]["param"] == "temprature"
    assert (by_id["line-25"]["status_code"], by_id["bad"]["status_code"]) == (400, 400)
    good = [r["body"] for r in by_id.values() if r["status_code"] == 200]
    assert {body["choices"][0]["finish_reason"] for body in good} == {"length"}
    assert {body["usage"]["completion_tokens"] for body in good} == {120}
    other = CliRunner().invoke(cli, [*options, "--limit", "5"], env=told)
    assert "was begun with another dataset" in " ".join(other.output.split())
    began = time.monotonic()
    again = CliRunner().invoke(cli, options, env=told)
    assert (again.exit_code, "0 are left" in again.output) == (0, True)
    assert time.monotonic() - began < 60  # no engine is started for nothing


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "other"], "--model other: the configuration has tiny"),
        (["--set", "engine.ngram=4"], "models.0.engine.ngram: unknown setting"),
        (["--set", "motor.x=4"], "motor.x=4: a model has no motor"),
        (["--set", "engine.cores"], "engine.cores: write it as name=value"),
    ],
)
def test_a_wrong_option_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.setenv("STARSERVE_CACHE", str(config.parent / "cache"))
    done = CliRunner().invoke(cli, ["bench", "batch", str(config), *options])
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())


@pytest.mark.full
def test_a_bad_prompt_stops_a_measurement_by_its_name(config: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": "def", "max_tokens": 4000}) + "\n")
    done = bench(config, "--prompts", str(asked))
    assert done.returncode == 1
    assert "line-1: prompt has" in done.stderr
