"""The rungs of the ladder: each one started as its users start it, with the same engine settings, and ended again."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from serve.engines.arguments import engine_arguments, prepare_environment
from serve.settings import Settings

START_WITHIN_S = 300.0
_ENGINE_CORE = ("VLLM::EngineCor", "VLLM::Worker")  # as the kernel cuts their names


@dataclass(slots=True)
class Rung:
    """A started server; `address` is empty for the engine in process, which is talked to over its pipes."""

    name: str
    process: subprocess.Popen[str]
    address: str = ""
    key: str = ""

    def serving_cpu_s(self) -> float:
        """CPU seconds so far of all its processes but the engine core: what serving costs."""
        total = 0.0
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            try:
                if not process.name().startswith(_ENGINE_CORE):
                    used = process.cpu_times()
                    total += used.user + used.system
            except psutil.NoSuchProcess:
                continue
        return total

    def ask(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """One round of the engine in process."""
        assert self.process.stdin is not None
        print(json.dumps(line), file=self.process.stdin, flush=True)
        return self.told()

    def told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"{self.name}: has ended")


@contextmanager
def bare(settings: Settings, folder: Path) -> Iterator[Rung]:
    """Our engine in a process of its own, without HTTP."""
    task = {"settings": settings.model_dump(mode="json"), "folder": str(folder)}
    with _started("bare engine", [sys.executable, "-m", "serve.bench.bare_run"], {}, pipes=True) as rung:
        rung.ask(task)
        yield rung


@contextmanager
def vllm_server(settings: Settings, folder: Path) -> Iterator[Rung]:
    """vLLM's own OpenAI server, access log off, from the same installation."""
    (model,) = settings.models
    prepare_environment(model)
    port, given = _free_port(), dict(engine_arguments(model, folder, {}, dummy=False))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
               "--disable-uvicorn-access-log", *_flags(given)]  # fmt: skip
    with _started("vLLM's server", command, {}, port=port) as rung:
        yield rung


@contextmanager
def stack(settings: Settings, config: Path) -> Iterator[Rung]:
    """Our own, as `starserve up` starts it."""
    port, state = _free_port(), tempfile.mkdtemp(prefix="sl-", dir="/tmp")
    environment = {"STARSERVE_STATE": state, "STARSERVE__HTTP__PORT": str(port)}
    try:
        with _started("starserve", [sys.executable, "-m", "serve", "up", str(config)], environment, port=port) as rung:
            rung.key = (Path(state) / str(port) / "development.key").read_text()
            yield rung
    finally:
        shutil.rmtree(state, ignore_errors=True)


@contextmanager
def _started(
    name: str, command: list[str], environment: Mapping[str, str], *, port: int | None = None, pipes: bool = False
) -> Iterator[Rung]:
    with tempfile.TemporaryFile("w+") as said:
        out: int | IO[str] = subprocess.PIPE if pipes else said
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE if pipes else subprocess.DEVNULL, stdout=out, stderr=said, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        below = list[psutil.Process]()
        try:
            if port is not None:
                _wait(name, process, f"http://127.0.0.1:{port}/health", said)
            yield Rung(name, process, f"http://127.0.0.1:{port}" if port else "")
        finally:
            if process.poll() is None:
                below = psutil.Process(process.pid).children(recursive=True)
                process.terminate()
            process.wait(60)
            for left in psutil.wait_procs(below, timeout=10)[1]:
                left.kill()


def _wait(name: str, process: subprocess.Popen[str], health: str, said: IO[str]) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    said.seek(0)
    words = said.read().strip().splitlines()
    raise RuntimeError(f"{name}: did not start: {words[-1] if words else 'it said nothing'}")


def _free_port() -> int:
    """Below the ports that the kernel gives away by itself."""
    while True:
        port = random.randrange(10_240, 20_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """AsyncEngineArgs as the command line of vLLM's server has them."""
    flags = list[str]()
    for name, value in arguments.items():
        if name == "enable_log_requests" or value is None:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags
