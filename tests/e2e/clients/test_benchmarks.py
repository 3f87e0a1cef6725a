"""Benchmark clients, unchanged, against the whole stack: no request fails, and their counts are ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clients.environments import HERE, python_of
from tests.support.stack import Stack, wait_for

pytestmark = [pytest.mark.full, pytest.mark.parametrize("variant", ["haproxy"], indirect=True)]
REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 6, 48, 16


def done_since(stack: Stack, before: int) -> list[Any]:
    """The log's lines of a run: all requests done, all of the asked length."""
    wait_for(lambda: len(stack.requests_logged()) >= before + REQUESTS)
    lines = stack.requests_logged()[before:]
    assert {line["outcome"] for line in lines} == {"done"}
    return [line for line in lines if line["output_tokens"] == OUTPUT_TOKENS]


def ran(command: list[str], **environment: str) -> str:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env={**os.environ, **offline, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_vllm_bench_serve(stack: Stack, starcoder_folder: Path, tmp_path: Path, path: str) -> None:
    before = len(stack.requests_logged())
    ran(
        [
            sys.executable, str(HERE / "scripts/vllm_bench.py"), "--base-url", stack.address, "--endpoint", path,
            "--backend", "openai-chat" if "chat" in path else "openai", "--model", "tiny",
            "--tokenizer", str(starcoder_folder), "--dataset-name", "random", "--num-prompts", str(REQUESTS),
            "--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS), "--ignore-eos",
            "--max-concurrency", "3", "--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json",
        ],
        OPENAI_API_KEY=stack.key, VLLM_TARGET_DEVICE="cpu",
    )  # fmt: skip
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["completed"], result["failed"]) == (REQUESTS, 0)
    assert result["total_output_tokens"] == REQUESTS * OUTPUT_TOKENS
    assert len(done_since(stack, before)) >= REQUESTS
    if "chat" not in path:
        assert result["total_input_tokens"] == sum(
            line["prompt_tokens"] for line in done_since(stack, before)[-REQUESTS:]
        )


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_guidellm(stack: Stack, starcoder_folder: Path, tmp_path: Path, path: str) -> None:
    before = len(stack.requests_logged())
    spec = {
        "backend": {"kind": "openai_http", "target": stack.address, "model": "tiny", "request_format": path,
                    "api_key": stack.key},
        "tokenizer": {"kind": "hf_auto", "model": str(starcoder_folder)},
        "data": [{"kind": "synthetic_text", "prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}],
        "profile": {"kind": "concurrent", "streams": [2]},
        "constraints": [{"kind": "max_requests", "count": REQUESTS}],
        "outputs": [{"kind": "json", "path": str(tmp_path / "report.json")}],
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"spec": spec}))
    command = [str(python_of("guidellm").parent / "guidellm"), "run", "-c", str(tmp_path / "run.yaml")]
    ran([*command, "--disable-console"])
    report = json.loads((tmp_path / "report.json").read_text())
    (benchmark,) = report["benchmarks"]
    metrics, lines = benchmark["metrics"], done_since(stack, before)
    assert metrics["request_totals"] == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}
    assert len(lines) == REQUESTS
    for name, ours in (("output_token_count", "output_tokens"), ("prompt_token_count", "prompt_tokens")):
        assert metrics[name]["successful"]["total_sum"] == sum(line[ours] for line in lines)
