"""`starserve bench model` on a small shape: what it will do on a GPU, real at every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from serve.__main__ import cli
from serve.bench.shapes import SHAPES
from serve.starcoder.rank import ranks

SMALL = ["bench", "model", "--dummy-weights", "--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--eager",
         "--kv-cache-gib", "0.1", "--prompts", "16", "--batches", "1,4", "--output", "16", "--runs", "3"]  # fmt: skip
PUBLISHED = {"starcoder": 15.517, "starcoderbase-7b": 7.327, "starcoderbase-3b": 3.043, "starcoderbase-1b": 1.137}


def measured(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """What was found of each class, and what was printed."""
    done = CliRunner().invoke(cli, [*SMALL, *options, "--save", str(folder / "report.json")])
    assert done.exit_code == 0, done.output
    classes: dict[str, Any] = json.loads((folder / "report.json").read_text())["classes"]
    for found in classes.values():
        assert [(p["prompt"], p["batch"]) for p in found["points"]] == [(16, 1), (16, 4)]
        for point in found["points"]:
            assert 0 < point["slowest_tokens_s"] <= point["output_tokens_s"] <= point["fastest_tokens_s"]
            assert 0 < point["tpot_s"] < point["ttft_s"] + 15 * point["tpot_s"]
            assert 0 < point["percent_of_roofline"] < 100
    return classes, done.output


def test_our_class_is_measured_and_a_report_is_kept(tmp_path: Path) -> None:
    classes, _ = measured(tmp_path, "--classes", "plugin")
    assert list(classes) == ["plugin"]
    assert classes["plugin"]["class"] == "serve.starcoder.model:GPTBigCodeForCausalLM"
    assert classes["plugin"]["bfloat16_weight_bytes_per_rank"] > 2 * 49152 * 256


@pytest.mark.full
def test_both_classes_are_measured_with_the_same_settings(tmp_path: Path) -> None:
    classes, output = measured(tmp_path)
    assert classes["plugin"]["class"] == "serve.starcoder.model:GPTBigCodeForCausalLM"
    assert classes["stock"]["class"].startswith("vllm.model_executor.models.transformers")
    key = "bfloat16_weight_bytes_per_rank"
    assert classes["plugin"][key] == classes["stock"][key] > 2 * 49152 * 256
    ratio = classes["plugin"]["points"][1]["output_tokens_s"] / classes["stock"]["points"][1]["output_tokens_s"]
    assert output.splitlines()[-2].split()[-1] == f"{ratio:.2f}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--shape", "starcoder3"], "starcoder3 is none of"),
        (["--batches", "1,x"], "give numbers above 0"),
        (["--batches", "0"], "give numbers above 0"),
        (["--classes", "plugin,ours"], "ours is none of"),
        (["--dtype", "int4"], "int4 is none of"),
    ],
)
def test_a_wrong_option_is_named(change: list[str], sentence: str) -> None:
    done = CliRunner().invoke(cli, [*SMALL, *change])
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())


@pytest.mark.full
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES[name]))
    (whole,) = ranks(tmp_path, [1])
    assert whole.weight_bytes / 2e9 == pytest.approx(PUBLISHED[name], abs=0.001)
