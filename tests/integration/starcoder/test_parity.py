"""The plugin answers as Hugging Face does, however it is split, and the stock backend does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.starcoder.answers import in_its_own_process
from tests.support.starcoder.models import ON_CPU, STAGES_2, Answer, assert_same, by_hugging_face, greedy, started

EAGER_2 = {"tensor_parallel_size": 2}


@pytest.fixture(scope="module")
def wanted(wide_folder: Path) -> list[Answer]:
    return by_hugging_face(wide_folder)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({}, id="one rank", marks=pytest.mark.full),
        # In the default tier test_adapters.py asks the base on two ranks, beside adapters.
        pytest.param(EAGER_2, id="two ranks", marks=pytest.mark.full),
        pytest.param(STAGES_2, id="two stages"),
        pytest.param({"ngram_tokens": 4}, id="guessed tokens", marks=pytest.mark.full),
        pytest.param({"pipeline_parallel_size": 3, "vllm": ON_CPU}, id="three stages", marks=pytest.mark.full),
    ],
)
async def test_ids_and_logprobs_are_those_of_hugging_face(
    wide_folder: Path, wanted: list[Answer], engine: dict[str, Any]
) -> None:
    async with started(wide_folder, **engine) as built:
        assert_same(await greedy(built), wanted)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_layers_answer_the_same(wide_folder: Path, wanted: list[Answer], ranks: int) -> None:
    engine = {"tensor_parallel_size": ranks, "enforce_eager": False}
    assert_same(in_its_own_process(wide_folder, engine, TORCHDYNAMO_DISABLE=""), wanted)
