"""`starserve up` on one machine: two instances beside each other, a crash, a second Ctrl-C, a busy port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.stack import Stack, free_port, tiny_model


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def answers(stack: Stack) -> bool:
    with stack.client() as client:
        return client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 2}).status_code == 200


def test_instances_live_side_by_side_and_a_start_after_a_crash_cleans_up(starcoder_folder: Path, cache: Path) -> None:
    settings = {"models": [tiny_model(starcoder_folder)]}
    with Stack(settings, cache) as first, Stack(settings, cache) as second:
        first.start()
        second.start()  # at once: neither may take the other's ports
        first.ready()
        second.ready()
        assert answers(first)
        assert answers(second)

        # All at once, so that no part can tidy up after another.
        left = [*first.below(), psutil.Process(first.process.pid)]
        engine = first.named("VLLM::EngineCore")
        for process in left:
            if process not in engine:
                process.kill()
        first.process.wait(10)
        assert engine[0].is_running()
        first.start().ready()
        assert "that an earlier instance had left" in first.said()
        assert not engine[0].is_running() or engine[0].status() == psutil.STATUS_ZOMBIE
        assert answers(first)
        assert answers(second)

        below = second.below()
        second.signal(signal.SIGTERM)
        time.sleep(0.3)
        again = time.monotonic()
        second.signal(signal.SIGTERM)
        second.process.wait(30)
        assert time.monotonic() - again < 5
        assert [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        assert answers(first)
        assert first.stop() < 15


def refused(settings: dict[str, object], folder: Path, **environment: str) -> str:
    config = folder / "c.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, "-m", "serve", "up", str(config)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "STARSERVE_STATE": "/tmp/ss-refused", **environment},
    )  # fmt: skip
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
    greedy = {**tiny_model(starcoder_folder, cores=4096, kv_cache_gib=100_000)}
    said = refused({"http": {"port": free_port()}, "models": [greedy]}, tmp_path)
    assert "lower engine.cores" in said
    assert "lower engine.kv_cache_gib" in said


def test_a_state_folder_that_is_too_long_for_sockets_is_refused(starcoder_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {"models": [tiny_model(starcoder_folder)]}
    said = refused(settings, tmp_path, STARSERVE_STATE=str(tmp_path / ("x" * 40)))
    assert "too long for the sockets" in said
