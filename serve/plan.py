"""How fast a model could be on a machine: the roofline. Pure arithmetic on the model's shape.

A decode step reads every weight once and every sequence's KV cache; a prefill computes. Neither can be faster than the
memory's bandwidth or the arithmetic allows. No overlap of communication is counted, and no scheduling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_GATED = {"llama", "mistral", "qwen2", "qwen3"}  # model_type of decoders with three feed-forward matrices


@dataclass(frozen=True, slots=True)
class Machine:
    """What one GPU (or CPU) was measured to do."""

    bandwidth_bytes_s: float
    flops_s: float


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder: `inner_matrices` feed-forward matrices of `inner`, `kv_heads` of `heads` with keys and values."""

    layers: int
    width: int
    heads: int
    inner: int
    vocabulary: int
    bytes_per_weight: int = 2
    kv_heads: int = 1
    inner_matrices: int = 2
    head_width: int | None = None  # width ÷ heads where None

    @classmethod
    def of(cls, config: Mapping[str, Any], bytes_per_weight: int = 2) -> Shape:
        """From a config.json; ValueError for a `model_type` whose arithmetic is not known here."""
        kind = config.get("model_type")
        if kind == "gpt_bigcode":
            inner = config.get("n_inner") or 4 * config["n_embd"]
            return cls(
                config["n_layer"], config["n_embd"], config["n_head"], inner, config["vocab_size"], bytes_per_weight
            )
        if kind in _GATED:
            heads = config["num_attention_heads"]
            return cls(
                config["num_hidden_layers"], config["hidden_size"], heads, config["intermediate_size"],
                config["vocab_size"], bytes_per_weight, config.get("num_key_value_heads") or heads, 3,
                config.get("head_dim"),
            )  # fmt: skip
        raise ValueError(f"the arithmetic of model_type {kind} is not known")

    @property
    def _head_width(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def matrix_weights(self) -> int:
        """Parameters that each token is multiplied with, but for the head."""
        attention = 2 * self.width * self._head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + self.inner_matrices * self.width * self.inner)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.width

    @property
    def step_bytes(self) -> int:
        """Weights that one decode step reads."""
        return (self.matrix_weights + self.head_weights) * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one token in the KV cache, over all heads."""
        return 2 * self.layers * self.kv_heads * self._head_width * self.bytes_per_weight

    def kv_bytes_of_a_rank(self, ranks: int) -> float:
        """Of one token; a tensor-parallel rank holds at least one whole head."""
        return self.kv_bytes_per_token / min(ranks, self.kv_heads)

    @property
    def attention_flops(self) -> int:
        """Per new token and token of context."""
        return 4 * self.layers * self.heads * self._head_width


def step_s(shape: Shape, machine: Machine, batch: int, context: float, ranks: int = 1) -> float:
    """Least seconds of one decode step of `batch` sequences with `context` tokens each."""
    weights = max(
        shape.step_bytes / ranks / machine.bandwidth_bytes_s,
        2 * (shape.matrix_weights + shape.head_weights) * batch / ranks / machine.flops_s,
    )
    attention = max(
        batch * context * shape.kv_bytes_of_a_rank(ranks) / machine.bandwidth_bytes_s,
        batch * context * shape.attention_flops / ranks / machine.flops_s,
    )
    return weights + attention


@dataclass(frozen=True, slots=True)
class Work:
    """What one rank must at least compute and read for some requests."""

    flops: float
    read_bytes: float

    def mfu(self, machine: Machine, wall_s: float) -> float:
        """Share of the machine's arithmetic that was used."""
        return self.flops / machine.flops_s / wall_s

    def mbu(self, machine: Machine, wall_s: float) -> float:
        """Share of the machine's memory bandwidth that was used."""
        return self.read_bytes / machine.bandwidth_bytes_s / wall_s

    def least_s(self, machine: Machine) -> float:
        """With prefills and decodes perfectly mixed."""
        return max(self.flops / machine.flops_s, self.read_bytes / machine.bandwidth_bytes_s)


def work(shape: Shape, requests: Iterable[tuple[int, int]], batch: float, ranks: int = 1) -> Work:
    """`requests`: computed prompt tokens (cached ones left out) and output tokens of each; `batch`: their mean."""
    flops = read = 0.0
    weights, head = shape.matrix_weights, shape.head_weights
    for prompt, output in requests:
        steps = max(0, output - 1)  # the first token comes from the prefill
        context = steps * prompt + steps * (steps + 1) / 2
        flops += prompt * (2 * weights + shape.attention_flops / 2 * prompt) + 2 * head
        flops += steps * 2 * (weights + head) + shape.attention_flops * context
        read += steps * shape.step_bytes / ranks / batch + shape.kv_bytes_of_a_rank(ranks) * context
    return Work(flops / ranks, read)


def output_tokens_s(shape: Shape, machine: Machine, prompt: int, output: int, batch: int, ranks: int = 1) -> float:
    """Most output tokens per second of `batch` endless requests, with prefills and decodes perfectly mixed."""
    return output / work(shape, [(prompt, output)], batch, ranks).least_s(machine)
