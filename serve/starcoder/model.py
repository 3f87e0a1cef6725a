"""GPTBigCode on vLLM 0.32's parallel layers.

Every big matrix is split over the tensor-parallel ranks; the one key-value head is on all of them. Pipeline stages
hand on the hidden states, which hold the position embedding from the first stage on. Parameter names are those of
the checkpoint, so that quantized weights and LoRA adapters find their layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import LayerNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP, SupportsQuant
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors


class MultiQueryAttention(nn.Module):
    """Many query heads, one key-value head. Hidden states in and out: [tokens, n_embd]."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quant = vllm_config.model_config.hf_config, vllm_config.quant_config
        head_size = config.n_embd // config.n_head
        # Fused as in the checkpoint: rows of all query heads, then of the key, then of the value.
        self.c_attn = QKVParallelLinear(
            config.n_embd, head_size, config.n_head, total_num_kv_heads=1, bias=True,
            quant_config=quant, prefix=f"{prefix}.c_attn",
        )  # fmt: skip
        self.c_proj = RowParallelLinear(
            config.n_embd, config.n_embd, bias=True, quant_config=quant, prefix=f"{prefix}.c_proj"
        )
        heads = config.n_head // get_tensor_model_parallel_world_size()
        self.widths = [heads * head_size, head_size, head_size]
        self.attn = Attention(
            heads, head_size, scale=head_size**-0.5 if config.scale_attn_weights else 1.0, num_kv_heads=1,
            cache_config=vllm_config.cache_config, quant_config=quant, prefix=f"{prefix}.attn",
        )  # fmt: skip

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.c_attn(hidden)[0].split(self.widths, dim=-1)
        out: torch.Tensor = self.c_proj(self.attn(query, key, value))[0]
        return out


class FeedForward(nn.Module):
    """78 % of StarCoder's parameters. Hidden states in and out: [tokens, n_embd]."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quant = vllm_config.model_config.hf_config, vllm_config.quant_config
        inner = config.n_inner or 4 * config.n_embd
        self.c_fc = ColumnParallelLinear(config.n_embd, inner, bias=True, quant_config=quant, prefix=f"{prefix}.c_fc")
        self.c_proj = RowParallelLinear(inner, config.n_embd, bias=True, quant_config=quant, prefix=f"{prefix}.c_proj")
        self.act = get_act_fn(config.activation_function)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c_proj(self.act(self.c_fc(hidden)[0]))[0]
        return out


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to what came in."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = MultiQueryAttention(vllm_config, f"{prefix}.attn")
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(vllm_config, f"{prefix}.mlp")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden))
        out: torch.Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out


# The number of tokens varies from step to step; vLLM cannot read that from annotations that are strings.
@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": 0, "intermediate_tensors": 0, "inputs_embeds": 0})
class Transformer(nn.Module):
    """One pipeline stage."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config, stage = vllm_config.model_config.hf_config, get_pp_group()
        self.wte: nn.Module = PPMissingLayer()
        self.wpe: nn.Module = PPMissingLayer()
        self.ln_f: nn.Module = PPMissingLayer()
        if stage.is_first_rank or (stage.is_last_rank and config.tie_word_embeddings):
            self.wte = VocabParallelEmbedding(
                config.vocab_size, config.n_embd, quant_config=vllm_config.quant_config, prefix=f"{prefix}.wte"
            )
        if stage.is_first_rank:
            self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.start_layer, self.end_layer, self.h = make_layers(
            config.n_layer, lambda prefix: Block(vllm_config, prefix), prefix=f"{prefix}.h"
        )
        if stage.is_last_rank:
            self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.make_empty_intermediate_tensors: Any = make_empty_intermediate_tensors_factory(["hidden"], config.n_embd)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None,
    ) -> torch.Tensor | IntermediateTensors:
        """[tokens] ids and positions, or the stage before's hidden states, to [tokens, n_embd]."""
        if get_pp_group().is_first_rank:
            # The only place that adds positions: the stages after this one get them within the hidden states.
            hidden = (self.wte(input_ids) if inputs_embeds is None else inputs_embeds) + self.wpe(positions)
        else:
            assert intermediate_tensors is not None
            hidden = intermediate_tensors["hidden"]
        for block in islice(self.h, self.start_layer, self.end_layer):
            hidden = block(hidden)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden": hidden})
        out: torch.Tensor = self.ln_f(hidden)
        return out


class GPTBigCodeForCausalLM(nn.Module, SupportsLoRA, SupportsPP, SupportsQuant):
    """What vLLM builds for `GPTBigCodeForCausalLM` when this plugin is loaded."""

    # To vLLM, c_attn is one projection with one adapter, although it holds query, key and value.
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {"c_attn": ["c_attn"]}
    # Old checkpoints carry each layer's causal mask.
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_suffix={".attn.bias": None, ".attn.masked_bias": None})

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        _refuse(config)
        self.config = config
        self.transformer = Transformer(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        self.lm_head: Any = PPMissingLayer()
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(
                config.vocab_size, config.n_embd, quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )  # fmt: skip
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.transformer.wte)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.transformer.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] to [tokens, n_embd], without positions."""
        out: torch.Tensor = self.transformer.wte(input_ids)
        return out

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        out: torch.Tensor | IntermediateTensors = self.transformer(
            input_ids, positions, intermediate_tensors, inputs_embeds
        )
        return out

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """[tokens, n_embd] to [tokens, vocabulary]."""
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded


def _refuse(config: Any) -> None:
    """Raise ValueError for a GPTBigCode that these layers would compute wrongly."""
    if not config.multi_query:
        raise ValueError("config.json: multi_query is false; such a GPTBigCode (one key per head) is not served")
    if config.add_cross_attention:
        raise ValueError("config.json: add_cross_attention is true; only decoders are served")
    if config.n_embd % config.n_head:
        raise ValueError(f"config.json: n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
