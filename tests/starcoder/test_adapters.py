"""LoRA adapters on sharded ranks: each answers as its merged model does, all at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serve.errors import AdapterUnavailable
from tests.starcoder.models import (
    PROMPTS,
    adapter_settings,
    assert_same,
    by_hugging_face,
    greedy,
    started,
    write_adapter,
)

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning")  # vLLM leaves ZeroMQ's


async def test_two_adapters_and_the_base_answer_at_once_each_as_its_merged_model(
    wide_folder: Path, tmp_path: Path
) -> None:
    every = write_adapter(wide_folder, tmp_path / "every", rank=4, seed=1)
    attention = write_adapter(wide_folder, tmp_path / "attention", rank=9, seed=2, targets=["c_attn"])
    adapters = [adapter_settings("every", every), adapter_settings("attention", attention)]
    merged = {name: by_hugging_face(tmp_path / name / "merged") for name in ("every", "attention")}
    base = by_hugging_face(wide_folder)
    assert len({answers[0].ids for answers in (base, *merged.values())}) == 3
    async with started(wide_folder, tensor_parallel_size=2, adapters=adapters, max_num_seqs=24) as engine:
        found = await asyncio.gather(*(greedy(engine, PROMPTS, adapter=name) for name in (None, "every", "attention")))
        with pytest.raises(AdapterUnavailable):
            await greedy(engine, PROMPTS[:1], adapter="nobody")
    for answers, wanted in zip(found, (base, merged["every"], merged["attention"]), strict=True):
        assert_same(answers, wanted)
