"""A hub with the tiny StarCoder in it, and the same model as pickles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.hub_models import copy_words


@pytest.fixture
def hub(starcoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, as the environment's HF_ENDPOINT; no token and no hub's folder of this machine is seen."""
    files = {p.name: p.read_bytes() for p in starcoder_folder.iterdir()} | {"README.md": b"# tiny\n"}
    hub = Hub(files)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def pickled_folder(starcoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny StarCoder in one pickle. Its head and its embedding are one tensor, as they were in training."""
    import torch
    from transformers import GPTBigCodeForCausalLM

    folder = tmp_path_factory.mktemp("pickled")
    copy_words(starcoder_folder, folder)
    state = GPTBigCodeForCausalLM.from_pretrained(starcoder_folder).state_dict()
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def sharded_folder(pickled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in three pickles with their index, as transformers used to write them."""
    import torch

    folder = tmp_path_factory.mktemp("sharded")
    copy_words(pickled_folder, folder)
    state = torch.load(pickled_folder / "pytorch_model.bin", weights_only=True)
    names = sorted(state, key=lambda name: name in ("lm_head.weight", "transformer.wte.weight"))
    weight_map = dict[str, str]()
    for number in range(3):
        shard = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        held = names[number * len(names) // 3 : (number + 1) * len(names) // 3]
        torch.save({name: state[name] for name in held}, folder / shard)
        weight_map |= dict.fromkeys(held, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
