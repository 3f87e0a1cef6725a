"""LoRA adapters that must not be served, each wrong in one way, with the reason that must be told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve.weights.adapters import CONFIG, WEIGHTS
from tests.support.starcoder.models import adapter_settings

REFUSED_BY_VLLM = "bad-layer"
BAD = {
    "bad-rank": "with rank 8 it must be",
    "bad-file": f"there is no file {WEIGHTS}",
    "bad-path": "a path with `..` is refused",
    "bad-link": f"{WEIGHTS} is a link that leads out",
    "bad-sum": "sha256: the sum of",
    REFUSED_BY_VLLM: "vLLM refuses it: ValueError: While loading",
}


def write_bad_adapters(base: Path, good: Path, folder: Path) -> list[dict[str, str]]:
    """Their settings. Each is `good` but for its one mistake."""
    settings = {name: adapter_settings(name, _copied(good, folder / name)) for name in BAD}
    config = json.loads((good / CONFIG).read_text())
    (folder / "bad-rank" / CONFIG).write_text(json.dumps({**config, "r": 8}))
    (folder / "bad-file" / WEIGHTS).unlink()
    settings["bad-path"]["folder"] = str(folder / "bad-sum" / ".." / "bad-path")
    (folder / "bad-link" / WEIGHTS).unlink()
    (folder / "bad-link" / WEIGHTS).symlink_to(good / WEIGHTS)
    settings["bad-sum"]["sha256"] = "0" * 64
    settings[REFUSED_BY_VLLM] = write_refused_by_vllm(base, good, folder / REFUSED_BY_VLLM)
    return list(settings.values())


def write_refused_by_vllm(base: Path, good: Path, folder: Path) -> dict[str, str]:
    """An adapter on the positions: a matrix of the base, so names and shapes fit, but vLLM adapts none there."""
    _copied(good, folder)
    config, shape = (json.loads(file.read_text()) for file in (good / CONFIG, base / "config.json"))
    halves = {"A": torch.ones(config["r"], shape["n_embd"]), "B": torch.ones(shape["n_positions"], config["r"])}
    wpe = {f"base_model.model.transformer.wpe.lora_{half}.weight": matrix for half, matrix in halves.items()}
    save_file(wpe, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({**config, "target_modules": ["wpe"]}))
    return adapter_settings(REFUSED_BY_VLLM, folder)


def _copied(good: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for file in (CONFIG, WEIGHTS):
        shutil.copy(good / file, folder)
    return folder
