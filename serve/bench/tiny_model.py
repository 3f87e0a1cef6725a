"""A tiny model with random weights, of the architecture and with the tokenizer of a real one.

Its engine costs next to nothing, so that what serving costs can be seen, and every token it makes is text. As a process
of its own it writes the weights.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serve.bench.child import findings
from serve.model_settings import Model, Source
from serve.settings import Settings

_SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
          "head_dim": 64, "intermediate_size": 256, "n_inner": 256}  # fmt: skip
# Ids above are never asked for, and never made: the projection to a whole vocabulary would be most of the work.
_VOCABULARY = 1024


def tiny(settings: Settings, folder: Path, into: Path) -> Settings:
    """The settings with `into` as the model's source: tiny, like the model of `folder`. RuntimeError where it fails."""
    (model,) = settings.models
    for _ in findings("serve.bench.tiny_model", {"folder": str(folder), "into": str(into)}, "tiny model"):
        pass
    small: Model = model.model_copy(update={"source": Source(folder=into), "adapters": ()})
    return settings.model_copy(update={"models": (small,)})


def _write(folder: Path, into: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors*", "starserve-manifest.json"))
    config: Any = AutoConfig.from_pretrained(folder)
    for name, value in _SMALL.items():
        if hasattr(config, name):
            setattr(config, name, value)
    config.vocab_size = min(config.vocab_size, _VOCABULARY)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with torch.no_grad():
        for token_id in range(config.vocab_size):
            if not _is_text(tokenizer, token_id):
                model.get_output_embeddings().weight[token_id] = 0
    model.save_pretrained(into)


def _is_text(tokenizer: Tokenizer, token_id: int) -> bool:
    """Whether it can be sent as soon as it is made: no control token, no part of a character."""
    text = tokenizer.decode([token_id])
    return bool(text) and text.isascii() and text.isprintable()


if __name__ == "__main__":
    task = json.loads(sys.stdin.readline())
    _write(Path(task["folder"]), Path(task["into"]))
