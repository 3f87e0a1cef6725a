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
from serve.check import shared_problems, shared_warnings
from serve.settings import parse
from tests.support.stack import tiny_model
from tests.support.starcoder.models import sum_of, write_adapter
from tests.support.starcoder.quantized import CONFIG as W8A8

CONFIGS = Path(__file__).parent.parent.parent / "configs"


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


def shared(folder: Path, **given: Any) -> tuple[list[str], list[str]]:
    """Problems and warnings of what processes share; nothing beyond the wheel is installed."""
    settings = parse({"models": [tiny_model(folder)], **given})
    return shared_problems(settings, folder, lambda _: False), shared_warnings(settings, folder)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"database": {"url": "postgresql+psycopg://u:secret@h/d"}}, "database.url: the package psycopg is not inst"),
        (
            {"limit_store": {"redis_url": "redis://:secret@h"}},
            "limit_store.redis_url: the package redis is not installe",
        ),
        ({"limit_store": {"redis_url": "http://:secret@h"}}, "write it as redis://, rediss:// or unix://"),
        ({"database": {"url": "sqlite:///tenants.db"}}, "name SQLite's file from the root"),
        ({"database": {"url": "sqlite:///:memory:"}}, "name SQLite's file from the root"),
        ({"admin": {"port": 8000}}, "admin.port: 8000 is http.port too"),
        ({"admin": {"port": 9001}, "metrics_port": 9001}, "metrics_port: 9001 is admin.port too"),
        ({"database": {"pepper_file": "pepper"}}, "database.pepper_file: pepper: name it from the root"),
        (
            {"database": {"pepper_file": "/etc/passwd/none"}},
            "database.pepper_file: /etc/passwd/none: is not there, and",
        ),
    ],
)
def test_what_processes_cannot_share_is_named_without_its_password(
    tmp_path: Path, given: dict[str, Any], sentence: str
) -> None:
    problems, _ = shared(tmp_path, **given)
    assert any(sentence in problem for problem in problems)
    assert "secret@" not in "".join(problems)
    assert not any("not installed" in p for p in shared(tmp_path)[0])


def test_several_routers_without_redis_and_an_open_admin_api_are_warned_of(tmp_path: Path) -> None:
    assert shared(tmp_path, router={"replicas": 1}) == ([], [])
    _, (routers, host) = shared(tmp_path, router={"replicas": 3}, admin={"port": 9001, "host": "0.0.0.0"})
    assert "3 routers without limit_store.redis_url count each alone" in routers
    assert "up to 3 times their limits" in routers
    assert "admin.host: 0.0.0.0 is open to the network" in host
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"models": [tiny_model(tmp_path)], "router": {"replicas": 3}}))
    assert "  ! router.replicas: 3 routers" in CliRunner().invoke(cli, ["check", str(path)]).output


@pytest.mark.parametrize(("name", "field"), [("pepper", "database.pepper_file"), ("admin.token", "admin.token_file")])
def test_secrets_that_others_may_open_are_refused(tmp_path: Path, name: str, field: str) -> None:
    (secret := tmp_path / name).write_text("s" * 64)
    for mode, problem, warning in ((0o600, "", ""), (0o440, "", "open to its group"), (0o604, "chmod 600", "")):
        secret.chmod(mode)
        problems, warnings = shared(tmp_path, admin={"port": 9001})
        assert [p for p in problems if not p.startswith(f"{field}: {secret}: everybody")] == []
        assert [problem in p for p in problems] == ([True] if problem else [])
        assert [w == f"{field}: {secret} is {warning}" for w in warnings] == ([True] if warning else [])
    secret.write_text("")
    secret.chmod(0o600)
    assert shared(tmp_path, admin={"port": 9001})[0] == [f"{field}: {secret}: is empty"]


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
