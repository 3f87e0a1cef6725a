"""What vLLM's own backend does wrong for StarCoder. When one of these fails, upstream has mended it: read again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.starcoder.answers import in_its_own_process
from tests.support.starcoder.models import adapter_settings, by_hugging_face, write_adapter

pytestmark = pytest.mark.full
WITHOUT_OURS = {"VLLM_PLUGINS": "none-of-ours", "STARSERVE_TEST_ANY_CLASS": "1"}


def test_pipeline_stages_of_the_stock_backend_answer_wrongly(wide_folder: Path) -> None:
    engine = {"pipeline_parallel_size": 2, "vllm": {"worker_extension_cls": "tests.support.starcoder.stages.Stage"}}
    found = in_its_own_process(wide_folder, engine, **WITHOUT_OURS)
    assert [a.ids for a in found] != [a.ids for a in by_hugging_face(wide_folder)]


def test_the_stock_backend_drops_adapters_on_c_attn(wide_folder: Path, tmp_path: Path) -> None:
    folder = write_adapter(wide_folder, tmp_path / "attention", targets=["c_attn"])
    engine = {"adapters": [adapter_settings("attention", folder)], "asked": "attention"}
    found = in_its_own_process(wide_folder, engine, **WITHOUT_OURS)
    assert [a.ids for a in found] == [a.ids for a in by_hugging_face(wide_folder)]  # as if there were no adapter
    assert [a.ids for a in found] != [a.ids for a in by_hugging_face(folder / "merged")]


def test_an_engine_refuses_to_start_when_another_class_builds_the_model(wide_folder: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        in_its_own_process(wide_folder, {}, VLLM_PLUGINS="none-of-ours")
    assert "not by our plugin; let vLLM load starserve_gpt_bigcode" in refused.value.stderr
