"""Checkpoints as they are found: every vocabulary, old spellings, other dtypes, eight bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.eight_bits import CPUINFO, exact
from tests.support.starcoder.models import PROMPTS, assert_same, by_hugging_face, greedy, started, write_model
from tests.support.starcoder.quantized import by_torch, write_quantized


@pytest.mark.full
@pytest.mark.parametrize("vocab_size", [49152, 49153, 49280])  # StarCoder's, with Alpaca's [PAD], SantaCoder's padded
async def test_every_vocabulary_is_split_over_the_ranks(tmp_path: Path, vocab_size: int) -> None:
    folder = write_model(tmp_path, vocab_size=vocab_size)
    async with started(folder, tensor_parallel_size=2) as engine:
        assert_same(await greedy(engine), by_hugging_face(folder))


@pytest.mark.full
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param({"n_head": 22, "n_embd": 22 * 32, "n_inner": None}, id="22 heads, as starcoderbase-3b"),
        pytest.param({"activation_function": "gelu_pytorch_tanh"}, id="SantaCoder's activation"),
        pytest.param({"tie_word_embeddings": False}, id="a head of its own"),
    ],
)
async def test_every_shape_of_the_family_is_built(tmp_path: Path, shape: dict[str, Any]) -> None:
    folder = write_model(tmp_path, **shape)
    async with started(folder, tensor_parallel_size=2) as engine:
        assert_same(await greedy(engine), by_hugging_face(folder))


async def test_a_checkpoint_of_2023_loads(wide_folder: Path, tmp_path: Path) -> None:
    """With each layer's causal mask, a second copy of the tied head, two shards, and keys that mean nothing now."""
    folder = Path(shutil.copytree(wide_folder, tmp_path / "old"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    positions, layers = tensors["transformer.wpe.weight"].shape[0], 3
    for layer in range(layers):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(positions, positions, dtype=torch.bool).tril()
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in range(2)}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file, {"format": "pt"})
    index = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = json.loads((folder / "config.json").read_text())
    legacy = {"inference_runner": 0, "validate_runner_input": True, "pre_allocate_kv_cache": True,
              "pad_key_length": True, "max_batch_size": None, "max_sequence_length": None, "torch_dtype": "float32",
              "transformers_version": "4.28.1"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**config, **legacy}))
    async with started(folder) as engine:
        assert_same(await greedy(engine), by_hugging_face(wide_folder))


@pytest.mark.full
async def test_float32_shards_are_served_in_bfloat16(wide_folder: Path) -> None:
    wanted = by_hugging_face(wide_folder)
    async with started(wide_folder, dtype="bfloat16", tensor_parallel_size=2) as engine:
        answers = await greedy(engine)
    same = [a.ids[0] == b.ids[0] for a, b in zip(answers, wanted, strict=True)]
    assert sum(same) >= 6  # of eight; bfloat16 has three digits


@pytest.mark.full
@pytest.mark.skipif(
    not exact(CPUINFO.read_text()),
    reason="W8A8 IS NOT TESTED HERE: this processor has no VNNI, and "
    "`check` refuses such models on it (tests/integration/test_check.py)",
)
@pytest.mark.parametrize("ranks", [1, 2])
async def test_eight_bit_weights_and_activations_answer_as_computed_in_torch(
    wide_folder: Path, tmp_path: Path, ranks: int
) -> None:
    folder = write_quantized(wide_folder, tmp_path / "w8a8")
    async with started(folder, tensor_parallel_size=ranks) as engine:
        answers = await greedy(engine)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        wanted = by_torch(wide_folder, prompt, ranks)
        assert answer.ids[0] == wanted.argmax()
        assert answer.logprobs[0] == pytest.approx(wanted.max().item(), abs=0.02)
