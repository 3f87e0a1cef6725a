"""A checkpoint in 8-bit integers (compressed-tensors; weights per channel, activations per token), and its twin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
CONFIG = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {**_INT8, "strategy": "channel", "dynamic": False},
        "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip
_LAYERS = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_quantized(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if not name.endswith(_LAYERS):
            tensors[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIG}))
    return folder


def by_torch(base: Path, prompt: tuple[int, ...], ranks: int) -> torch.Tensor:
    """Log-probabilities of the token after `prompt`: Hugging Face's model with each linear layer in 8 bits.

    Row-parallel layers (`c_proj`) measure their activations on each rank apart.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    layers: dict[str, Any] = dict(model.named_modules())
    for name, layer in layers.items():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            rounded: Any = _rounded(layer, ranks if name.endswith("c_proj") else 1)
            vars(layer)["forward"] = rounded
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([prompt])).logits[0, -1]
    return torch.log_softmax(logits, -1)


def _rounded(layer: torch.nn.Linear, parts: int) -> Any:
    weight = layer.weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    weight = (weight / scale).round() * scale

    def forward(x: torch.Tensor) -> torch.Tensor:
        pieces = []
        for piece in x.chunk(parts, -1):
            step = piece.abs().amax(-1, keepdim=True) / 127
            pieces.append((piece / step).round() * step)
        return torch.nn.functional.linear(torch.cat(pieces, -1), weight, layer.bias)

    return forward
