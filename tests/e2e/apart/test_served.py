"""The whole way of a model that lies pickled in a repository: download, conversion, and an answer over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hub import COMMIT, REPOSITORY, Hub
from tests.support.stack import Stack, tiny_model

PROMPT = list(range(300, 312))


@pytest.mark.full
def test_a_pickled_repository_is_served_with_the_very_answers_of_its_model(
    hub: Hub, sharded_folder: Path, starcoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import GPTBigCodeForCausalLM

    del hub.files["model.safetensors"]
    hub.files |= {p.name: p.read_bytes() for p in sharded_folder.iterdir()}
    hub.token = "hf_never-shown"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    source = {"repository": REPOSITORY, "revision": COMMIT, "convert_pickle": True}
    with Stack({"models": [{**tiny_model(Path("unused")), "source": source}]}, tmp_path) as stack:
        client = stack.start().ready().client()
        asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "return_token_ids": True}
        answer = client.post("/v1/completions", json=asked).json()
        client.close()
        assert "never-shown" not in stack.said() + stack.logged()
    model = GPTBigCodeForCausalLM.from_pretrained(starcoder_folder, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)
    assert answer["choices"][0]["token_ids"] == made[0, len(PROMPT) :].tolist()
