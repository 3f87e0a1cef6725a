"""An adapter that does not fit is named with its reason, before an engine sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from serve.model_settings import Adapter
from serve.settings import SettingsError
from serve.weights.adapters import checked
from tests.support.starcoder.models import sum_of, write_adapter

LAYER = "base_model.model.transformer.h.0.attn.c_attn"


@pytest.fixture
def folder(starcoder_folder: Path, tmp_path: Path) -> Path:
    return write_adapter(starcoder_folder, tmp_path / "adapter", rank=4)


def refusal(folder: Path, base: Path, **settings: Any) -> str:
    found = sum_of(folder) if (folder / "adapter_model.safetensors").exists() else ""
    with pytest.raises(SettingsError) as refused:
        checked(Adapter(**{"name": "mine", "folder": folder, "sha256": found, **settings}), base)
    assert str(refused.value).startswith("adapter mine: ")
    return str(refused.value)


def test_an_adapter_as_peft_saves_it_fits_and_tells_its_rank(folder: Path, starcoder_folder: Path) -> None:
    assert checked(Adapter(name="mine", folder=folder, sha256=sum_of(folder)), starcoder_folder) == 4


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(folder: Path, starcoder_folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"there is no file {name}" in refusal(folder, starcoder_folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused(folder: Path, starcoder_folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert f"{name} is a link that leads out" in refusal(folder, starcoder_folder)


def test_a_path_that_climbs_is_refused(folder: Path, starcoder_folder: Path) -> None:
    assert "`..`" in refusal(folder / ".." / "adapter", starcoder_folder)


@pytest.mark.parametrize("given", [None, "0" * 64])
def test_the_sum_is_required_and_told(folder: Path, starcoder_folder: Path, given: str | None) -> None:
    assert sum_of(folder) in refusal(folder, starcoder_folder, sha256=given)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r": 8}, "with rank 8 it must be"),
        ({"r": 0}, "r must be a rank"),
        ({"r": 1024}, "r must be a rank"),
        ({"r": "4"}, "r must be a rank"),
        ({"peft_type": "IA3"}, "peft_type must be LORA"),
        ({"use_dora": True}, "use_dora is not served"),
        ({"bias": "all"}, "bias is not served"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not served"),
        ({"rank_pattern": {"c_attn": 2}}, "rank_pattern is not served"),
    ],
)
def test_a_configuration_that_would_be_computed_wrongly_is_refused(
    folder: Path, starcoder_folder: Path, changes: dict[str, Any], reason: str
) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    assert reason in refusal(folder, starcoder_folder)


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.pop(name)


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.__setitem__(new, tensors.pop(old))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without(f"{LAYER}.lora_B.weight"), "has only one of its two matrices"),
        (lambda tensors: tensors.clear(), "holds no matrix"),
        (renamed(f"{LAYER}.lora_A.weight", f"{LAYER}.weight"), "is no matrix of a LoRA adapter"),
        (renamed(f"{LAYER}.lora_A.weight", f"{LAYER.replace('h.0', 'h.9')}.lora_A.weight"), "has no matrix"),
        (renamed(f"{LAYER}.lora_A.weight", f"{LAYER.replace('attn.c_attn', 'ln_1')}.lora_A.weight"), "has no matrix"),
        (lambda t: t.update({f"{LAYER}.lora_A.weight": t[f"{LAYER}.lora_A.weight"][:, :5].clone()}), "has the shape"),
    ],
)
def test_matrices_that_are_not_the_models_are_refused(
    folder: Path, starcoder_folder: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    assert reason in refusal(folder, starcoder_folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 64, os.urandom(4096), b"\x02" + b"\0" * 7 + b"[]"])
def test_rubbish_is_refused_not_raised(folder: Path, starcoder_folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert refusal(folder, starcoder_folder)
