"""What each rank of the real StarCoder weighs: counted, not computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve.starcoder.rank import ranks

# bigcode/starcoder's shape, with the Alpaca `[PAD]` (reference: the model's config.json; 15,517,462,528 parameters).
STARCODER = {
    "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "n_layer": 40, "n_embd": 6144,
    "n_head": 48, "n_inner": 24576, "n_positions": 8192, "vocab_size": 49153, "multi_query": True,
    "activation_function": "gelu", "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
SHARDED_GB = {1: 31.0, 2: 15.6, 4: 7.9, 8: 4.1}
STOCK_GB = {1: 31.0, 2: 27.7, 4: 26.0, 8: 25.2}


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shape")
    (folder / "config.json").write_text(json.dumps(STARCODER))
    return folder


def test_each_rank_holds_its_share_of_starcoder(shape: Path) -> None:
    found = ranks(shape, list(SHARDED_GB))
    assert {r.model_class for r in found} == {"serve.starcoder.model:GPTBigCodeForCausalLM"}
    print(*found, sep="\n")
    for rank in found:
        assert rank.weight_bytes / 1e9 == pytest.approx(SHARDED_GB[rank.tensor_parallel_size], rel=0.02)


@pytest.mark.full
def test_each_rank_of_the_stock_backend_holds_all_feed_forward_layers(shape: Path) -> None:
    found = ranks(shape, list(STOCK_GB), {"VLLM_PLUGINS": "none-of-ours"})
    print(*found, sep="\n")
    for rank in found:
        assert rank.weight_bytes / 1e9 == pytest.approx(STOCK_GB[rank.tensor_parallel_size], rel=0.02)
