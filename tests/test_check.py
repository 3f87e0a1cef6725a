"""`starserve check`: sentences that name the field and say what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve import eight_bits
from serve.__main__ import cli
from tests.stack import tiny_model
from tests.starcoder.models import sum_of, write_adapter
from tests.starcoder.quantized import CONFIG as W8A8

CONFIGS = Path(__file__).parent.parent / "configs"


def check(folder: Path, model: dict[str, Any]) -> tuple[int, str]:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"models": [model]}))
    done = CliRunner().invoke(cli, ["check", str(path)])
    return done.exit_code, done.output


def test_the_embedded_default_can_be_served_here() -> None:
    done = CliRunner().invoke(cli, ["check", str(CONFIGS / "smollm2-cpu.yaml")])
    assert done.exit_code == 0, done.output
    assert "engines want 2 cores" in done.output


def test_the_flagship_asks_for_its_revision_by_name() -> None:
    done = CliRunner().invoke(cli, ["check", str(CONFIGS / "starcoder-gpteacher.yaml")])
    assert done.exit_code == 1
    assert "models.starcoder-gpteacher-code-instruct.source.revision: required" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ({"kv_cache_gib": None}, "engine.kv_cache_gib: required on cpu"),
        ({"replicas": 4000}, "all engines together want 4000 cores"),
        ({"pipeline_parallel_size": 2}, "engine.pipeline_parallel_size: 1 on cpu"),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, engine: dict[str, Any], sentence: str) -> None:
    code, said = check(tmp_path, tiny_model(tmp_path, **engine))
    assert code == 1
    assert sentence in said


@pytest.fixture
def prepared(starcoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of the tiny StarCoder, which lies prepared in a cache of its own."""
    monkeypatch.setenv("STARSERVE_CACHE", str(tmp_path / "cache"))
    model = tiny_model(starcoder_folder)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"models": [model]}))
    assert CliRunner().invoke(cli, ["model", "prepare", str(tmp_path / "c.yaml")]).exit_code == 0
    return model


def test_ranks_that_do_not_divide_the_heads_are_refused(prepared: dict[str, Any], tmp_path: Path) -> None:
    code, said = check(tmp_path, {**prepared, "engine": {**prepared["engine"], "tensor_parallel_size": 3}})
    assert code == 1
    assert "engine.tensor_parallel_size: 3 does not divide the model's 4 attention heads" in said


def test_a_starcoder_without_our_plugin_is_refused(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(tmp_path, prepared)[0] == 0
    monkeypatch.setenv("VLLM_PLUGINS", "somebody_elses")
    code, said = check(tmp_path, prepared)
    assert code == 1
    assert "let VLLM_PLUGINS hold starserve_gpt_bigcode" in said


def test_an_adapter_without_its_sum_is_named_with_it(
    prepared: dict[str, Any], starcoder_folder: Path, tmp_path: Path
) -> None:
    folder = write_adapter(starcoder_folder, tmp_path / "adapter")
    adapter = {"name": "mine", "folder": str(folder)}
    code, said = check(tmp_path, {**prepared, "adapters": [adapter]})
    assert code == 1
    assert (
        f"models.tiny.adapters: adapter mine: sha256: the sum of adapter_model.safetensors is {sum_of(folder)}" in said
    )
    assert check(tmp_path, {**prepared, "adapters": [{**adapter, "sha256": sum_of(folder)}]})[0] == 0


def test_engine_arguments_are_compared_with_vllms_own(tmp_path: Path) -> None:
    for arguments, sentence in (
        ({"max_num_batched_token": 1}, "did you mean `max_num_batched_tokens`?"),
        ({"trust_remote_code": True}, "remote code never runs"),
        ({"max_model_len": 9}, "set by context_tokens, not here"),
    ):
        code, said = check(tmp_path, tiny_model(tmp_path, vllm=arguments))
        assert code == 1
        assert sentence in said


def test_a_broken_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text in ("models: [", "- 1", "", "models: []", "models: 3"):
        path.write_text(text)
        done = CliRunner().invoke(cli, ["check", str(path)])
        assert done.exit_code == 2
        assert done.output.startswith("starserve: ")
    assert CliRunner().invoke(cli, ["check", str(tmp_path / "none.yaml")]).exit_code == 2


@pytest.mark.parametrize("command", [[], ["up"], ["check"], ["model"], ["model", "prepare"]])
def test_every_command_teaches(command: list[str]) -> None:
    done = CliRunner().invoke(cli, [*command, "--help"])
    assert done.exit_code == 0
    assert len(re.sub(r"\s+", " ", done.output)) > 200


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [("avx2 avx512_vnni", True), ("avx avx_vnni", True), ("avx512f amx_int8", True), ("avx2", False)],
)
def test_processors_that_multiply_8_bit_integers_exactly_are_known_by_their_flags(flags: str, wanted: bool) -> None:
    assert eight_bits.exact(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n") is wanted


def test_8_bit_activations_are_refused_where_the_processor_is_inexact(
    prepared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config,) = (tmp_path / "cache").glob("models/*/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": W8A8}))
    for flags, refused in (("avx2", True), ("avx2 avx512_vnni", False)):
        monkeypatch.setattr(eight_bits, "CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        assert ("multiplies inexactly (no VNNI)" in check(tmp_path, prepared)[1]) is refused
