"""Clients of the OpenAI API, unchanged, each in an environment of its own, against the whole stack."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bad_adapters import BAD
from tests.support.clients.environments import HERE, node_of, python_of
from tests.support.stack import Stack

pytestmark = [pytest.mark.full, pytest.mark.parametrize("variant", ["haproxy"], indirect=True)]
CHAT = {"messages": [{"role": "user", "content": "Sort."}]}


@pytest.fixture(scope="module")
def expected(stack: Stack) -> dict[str, Any]:
    """What a plain HTTP client gets."""
    common = {"model": "tiny", "max_tokens": 16, "temperature": 0}
    with stack.client() as client:
        chat = client.post("/v1/chat/completions", json={**common, **CHAT}).json()["choices"][0]["message"]["content"]
        raw = client.post("/v1/completions", json={**common, "prompt": ["def f(", "class A:"]}).json()["choices"]
    assert chat
    return {"chat": chat, "completion": raw[0]["text"], "batch": raw[1]["text"]}


def said(command: list[str], stack: Stack, folder: Path) -> dict[str, Any]:
    """Run a client's script. Returns the JSON object that it prints."""
    arguments = [f"{stack.address}/v1", stack.key, "tiny"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_langchain(stack: Stack, expected: dict[str, Any], tmp_path: Path) -> None:
    answer = said([str(python_of("langchain")), str(HERE / "scripts/langchain_client.py")], stack, tmp_path)
    for name in ("chat", "streamed", "async", "async_streamed", "tools"):
        assert answer[name] == expected["chat"], name
    assert (answer["completion"], answer["batch"]) == (expected["completion"], expected["batch"])
    assert answer["usage"]["output_tokens"] == 16
    assert answer["structured"].keys() == {"colour", "loud"}
    assert answer["tool_calls"] == []
    assert answer["refused"].endswith("AuthenticationError")


def test_llama_index(stack: Stack, expected: dict[str, Any], tmp_path: Path) -> None:
    answer = said([str(python_of("llama-index")), str(HERE / "scripts/llamaindex_client.py")], stack, tmp_path)
    assert answer["chat"] == answer["streamed"] == expected["chat"]
    assert answer["completion"] == answer["completion_streamed"] == expected["completion"]
    assert answer["usage"] == 16
    assert answer["refused"].endswith("AuthenticationError")


def test_openai_node(stack: Stack, expected: dict[str, Any]) -> None:
    folder = node_of("openai-node")
    (folder / "client.mjs").write_bytes((HERE / "openai-node" / "client.mjs").read_bytes())
    answer = said(["node", "client.mjs"], stack, folder)
    for name in ("chat", "streamed", "tools"):
        assert answer[name] == expected["chat"], name
    assert answer["completion"] == answer["completion_streamed"] == expected["completion"]
    assert answer["batch"] == expected["batch"]
    assert set(answer["models"]) == {"tiny", "pair", "good", *BAD}
    assert (answer["usage"], answer["logprobs"], answer["tool_calls"]) == (16, 16, [])
    assert answer["structured"].keys() == {"colour", "loud"}
    assert answer["refused"].endswith("AuthenticationError")


def test_llm(stack: Stack, expected: dict[str, Any], tmp_path: Path) -> None:
    model = {"model_id": "ours", "model_name": "tiny", "api_base": f"{stack.address}/v1", "api_key_name": "ours"}
    raw = {**model, "model_id": "ours-raw", "completion": True}
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump([model, raw]))
    (tmp_path / "keys.json").write_text(json.dumps({"ours": stack.key}))

    def llm(*arguments: str, ok: bool = True) -> str:
        command = [str(python_of("llm")), "-m", "llm", *arguments]
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert (done.returncode == 0) is ok, done.stderr
        return done.stdout if ok else done.stderr

    options = ("-o", "temperature", "0", "-o", "max_tokens", "16")
    assert llm("-m", "ours", *options, "Sort.").rstrip("\n") == expected["chat"].rstrip("\n")
    assert llm("-m", "ours", "--no-stream", *options, "Sort.").rstrip("\n") == expected["chat"].rstrip("\n")
    assert llm("-m", "ours-raw", *options, "def f(").rstrip("\n") == expected["completion"].rstrip("\n")
    assert llm("-m", "ours", *options, "Sort.")
    assert llm("-c", *options, "Again.")
    logged = json.loads(llm("logs", "-n", "1", "--json"))[0]
    assert logged["output_tokens"] == 16
    asked = [line["prompt_tokens"] for line in stack.requests_logged()[-2:]]
    assert asked[1] == logged["input_tokens"] > asked[0], "the first turn is part of the second"
    (tmp_path / "keys.json").write_text(json.dumps({"ours": "sk-wrong"}))
    assert "401" in llm("-m", "ours", "Sort.", ok=False)
