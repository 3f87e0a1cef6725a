"""What `starserve up` refuses before it starts anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.support.instances import recorded, runs, state_folder, supervisor
from tests.support.stack import free_port, tiny_model


def refused(settings: Mapping[str, object], folder: Path, **environment: str) -> str:
    config = folder / "c.yaml"
    config.write_text(yaml.safe_dump(dict(settings)))
    done = subprocess.run(
        [sys.executable, "-m", "serve", "up", str(config)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "STARSERVE_STATE": "/tmp/ss-refused", **environment},
    )
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_busy_port_is_told_with_what_to_do(starcoder_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused({"http": {"port": port}, "models": [tiny_model(starcoder_folder)]}, tmp_path)
    assert f"http.port: {port} is in use" in said
    assert "STARSERVE__HTTP__PORT" in said


def test_what_this_machine_lacks_is_told_before_anything_starts(starcoder_folder: Path, tmp_path: Path) -> None:
    greedy = tiny_model(starcoder_folder, cores=4096, device="gpu", dtype="bfloat16")
    said = refused({"http": {"port": free_port()}, "models": [greedy]}, tmp_path)
    assert "lower engine.cores" in said
    assert "want 1 GPU(s), this machine has none" in said


def test_a_state_folder_that_is_too_long_for_sockets_is_refused(starcoder_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {"models": [tiny_model(starcoder_folder)]}
    said = refused(settings, tmp_path, STARSERVE_STATE=str(tmp_path / ("x" * 40)))
    assert "too long for the sockets" in said


def test_a_second_start_leaves_the_one_that_runs_alone(starcoder_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = {"http": {"port": port}, "models": [tiny_model(starcoder_folder, cores=4096)]}
    with state_folder() as state, supervisor(state, port, tmp_path / "c.yaml") as first, recorded(state, port) as below:
        said = refused(settings, tmp_path, STARSERVE_STATE=str(state))
        assert f"http.port: {port}: already running (pid {first.pid}, since 20" in said
        assert first.poll() is None
        assert runs(below)


def test_what_a_dead_one_left_stays_until_the_configuration_is_right(starcoder_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    with state_folder() as state, recorded(state, port) as below:
        bad = {"http": {"port": port}, "models": [tiny_model(starcoder_folder, cores=4096)]}
        assert "lower engine.cores" in refused(bad, tmp_path, STARSERVE_STATE=str(state))
        assert runs(below)
        memory = {"http": {"port": port}, "models": [tiny_model(starcoder_folder, kv_cache_gib=100_000)]}
        assert "lower engine.kv_cache_gib" in refused(memory, tmp_path, STARSERVE_STATE=str(state))
        assert not runs(below)  # what it took of the memory is free when that is measured
