"""Shapes of the StarCoder family, for engines with random weights. Counted totals are tested against published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FAMILY = {
    "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "multi_query": True,
    "activation_function": "gelu", "n_positions": 8192, "vocab_size": 49152, "bos_token_id": 0, "eos_token_id": 0,
    "tie_word_embeddings": True,
}  # fmt: skip


def _shape(layers: int, width: int, heads: int, inner: int, **others: Any) -> dict[str, Any]:
    return {**_FAMILY, "n_layer": layers, "n_embd": width, "n_head": heads, "n_inner": inner, **others}


SHAPES: Mapping[str, Mapping[str, Any]] = {
    "starcoder": _shape(40, 6144, 48, 24576, vocab_size=49153),  # with the Alpaca `[PAD]`
    "starcoderbase-7b": _shape(42, 4096, 32, 16384),
    "starcoderbase-3b": _shape(36, 2816, 22, 11264),
    "starcoderbase-1b": _shape(24, 2048, 16, 8192),
    "small": _shape(8, 1024, 8, 8192, n_positions=2048),
    "tiny": _shape(4, 256, 8, 1024, n_positions=2048),
}
