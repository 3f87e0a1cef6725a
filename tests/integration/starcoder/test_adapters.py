"""LoRA adapters on sharded ranks and on stages: each answers as its merged model does, all at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serve.errors import AdapterUnavailable
from tests.support.bad_adapters import write_refused_by_vllm
from tests.support.starcoder.models import (
    PROMPTS,
    STAGES_2,
    adapter_settings,
    assert_same,
    by_hugging_face,
    greedy,
    started,
    write_adapter,
)


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


@pytest.mark.full
async def test_an_adapter_and_the_base_answer_at_once_on_two_stages_each_as_its_merged_model(
    wide_folder: Path, tmp_path: Path
) -> None:
    folder = write_adapter(wide_folder, tmp_path / "every")
    base, merged = by_hugging_face(wide_folder), by_hugging_face(folder / "merged")
    assert not {answer.ids for answer in base} & {answer.ids for answer in merged}
    refused = write_refused_by_vllm(wide_folder, folder, tmp_path / "refused")
    adapters = [refused, adapter_settings("every", folder)]  # what one stage has said must not be left for later
    async with started(wide_folder, **STAGES_2, adapters=adapters, max_num_seqs=16) as engine:
        of_base, of_adapter = await asyncio.gather(*(greedy(engine, adapter=name) for name in (None, "every")))
    assert_same(of_base, base)
    assert_same(of_adapter, merged)
