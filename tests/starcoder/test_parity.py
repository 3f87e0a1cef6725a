"""The plugin answers as Hugging Face does, however it is split, and the stock backend does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.starcoder.answers import in_its_own_process
from tests.starcoder.models import Answer, assert_same, by_hugging_face, greedy, started

pytestmark = pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning")  # vLLM leaves ZeroMQ's
ON_CPU = {"worker_extension_cls": "tests.starcoder.stages.Stage"}
EAGER_2 = {"tensor_parallel_size": 2}
STAGES_2: dict[str, Any] = {"pipeline_parallel_size": 2, "vllm": ON_CPU}


@pytest.fixture(scope="module")
def wanted(wide_folder: Path) -> list[Answer]:
    return by_hugging_face(wide_folder)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({}, id="one rank", marks=pytest.mark.full),
        pytest.param(EAGER_2, id="two ranks"),
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
