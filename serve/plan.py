"""How fast a StarCoder could be on a machine: the roofline. Pure arithmetic on the model's shape.

A decode step reads every weight once and every sequence's KV cache; a prefill computes. Neither can be faster than the
memory's bandwidth or the arithmetic allows. No overlap of communication is counted, and no scheduling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Machine:
    """What one GPU (or CPU) was measured to do."""

    bandwidth_bytes_s: float
    flops_s: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPTBigCode: two feed-forward matrices, one key-value head, a head tied to the embedding."""

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    bytes_per_weight: int = 2

    @classmethod
    def of(cls, config: Mapping[str, Any], bytes_per_weight: int = 2) -> Shape:
        """From a config.json of `model_type` gpt_bigcode."""
        inner = config.get("n_inner") or 4 * config["n_embd"]
        return cls(config["n_layer"], config["n_embd"], config["n_head"], inner, config["vocab_size"], bytes_per_weight)

    @property
    def matrix_weights(self) -> int:
        """Parameters that each token is multiplied with, but for the head."""
        key_and_value = 2 * self.width // self.heads
        return self.layers * self.width * (self.width + key_and_value + self.width + 2 * self.inner)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.width

    @property
    def step_bytes(self) -> int:
        """Weights that one decode step reads."""
        return (self.matrix_weights + self.head_weights) * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one token in the KV cache; each tensor-parallel rank holds all of it."""
        return 2 * self.layers * (self.width // self.heads) * self.bytes_per_weight

    @property
    def attention_flops(self) -> int:
        """Per new token and token of context."""
        return 4 * self.layers * self.width


def step_s(shape: Shape, machine: Machine, batch: int, context: float, ranks: int = 1) -> float:
    """Least seconds of one decode step of `batch` sequences with `context` tokens each."""
    weights = max(
        shape.step_bytes / ranks / machine.bandwidth_bytes_s,
        2 * (shape.matrix_weights + shape.head_weights) * batch / ranks / machine.flops_s,
    )
    attention = max(
        batch * context * shape.kv_bytes_per_token / machine.bandwidth_bytes_s,
        batch * context * shape.attention_flops / ranks / machine.flops_s,
    )
    return weights + attention


def output_tokens_s(shape: Shape, machine: Machine, prompt: int, output: int, batch: int, ranks: int = 1) -> float:
    """Most output tokens per second of `batch` endless requests, with prefills and decodes perfectly mixed."""
    flops = float(prompt * (2 * shape.matrix_weights + shape.attention_flops / 2 * prompt) + 2 * shape.head_weights)
    read = (output - 1) * shape.step_bytes / ranks / batch
    for made in range(1, output):
        flops += 2 * (shape.matrix_weights + shape.head_weights) + shape.attention_flops * (prompt + made)
        read += shape.kv_bytes_per_token * (prompt + made)
    return output / max(flops / ranks / machine.flops_s, read / machine.bandwidth_bytes_s)
