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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from serve.engines.arguments import engine_arguments, engine_environment
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
    behind: Rung | None = None  # the server that this one is a proxy of
    folder: Path = Path()  # of a stack of ours: the instance's

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far of all its processes: of serving, and of the engine core. A proxy serves with both."""
        serving, core = self.behind.cpu_s() if self.behind else (0.0, 0.0)
        own = psutil.Process(self.process.pid)
        for process in [own, *own.children(recursive=True)]:
            try:
                used, name = process.cpu_times(), process.name()
            except psutil.NoSuchProcess:
                continue
            if name.startswith(_ENGINE_CORE):
                core += used.user + used.system
            else:
                serving += used.user + used.system
        return serving, core

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
    with started("bare engine", [sys.executable, "-m", "serve.bench.bare_run"]) as rung:
        rung.ask(task)
        yield rung


@contextmanager
def vllm_server(settings: Settings, folder: Path) -> Iterator[Rung]:
    """vLLM's own OpenAI server, access log off, from the same installation."""
    (model,) = settings.models
    port, given = free_port(), dict(engine_arguments(model, folder, {}, dummy=False))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
               "--disable-uvicorn-access-log", *_flags(given)]  # fmt: skip
    with started("vLLM's server", command, port=port, environment=engine_environment(model)) as rung:
        yield rung


@contextmanager
def stack(settings: Settings, cache: Path, name: str = "starserve") -> Iterator[Rung]:
    """Our own, as `starserve up` starts it. `cache` holds the prepared model."""
    port, state = free_port(), Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    environment = {"STARSERVE_STATE": str(state), "STARSERVE_CACHE": str(cache), "STARSERVE__HTTP__PORT": str(port)}
    config = state / "config.yaml"
    # What is measured shares nothing: its tenants, limits and ledger are its own.
    plain = settings.model_dump(mode="json", exclude={"database", "limit_store", "admin"})
    config.write_text(yaml.safe_dump(plain), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "serve", "up", str(config)]
        with started(name, command, port=port, environment=environment) as rung:
            rung.folder = state / str(port)
            rung.key = (rung.folder / "development.key").read_text()
            yield rung
    finally:
        shutil.rmtree(state, ignore_errors=True)


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    *,
    port: int | None = None,
    health: str = "/health",
    environment: Mapping[str, str] | None = None,
    says: str = "",
) -> Iterator[Rung]:
    """Start it, wait until it is ready, and end it with all that it started.

    Ready is what answers at `health`, or has said the line `says`. Without a port it is talked to over pipes.
    """
    with tempfile.TemporaryFile("w+") as said:
        pipe, out = (subprocess.PIPE, subprocess.PIPE) if port is None else (subprocess.DEVNULL, said)
        process = subprocess.Popen(
            command, stdin=pipe, stdout=out, stderr=said, text=True, env={**os.environ, **(environment or {})}
        )
        below = list[psutil.Process]()
        try:
            if port is not None:
                address = f"http://127.0.0.1:{port}"
                _wait(
                    name, process, (lambda: says in _lines(said)) if says else lambda: _answers(address + health), said
                )
            yield Rung(name, process, f"http://127.0.0.1:{port}" if port else "")
        finally:
            if process.poll() is None:
                below = psutil.Process(process.pid).children(recursive=True)
                process.terminate()
            process.wait(60)
            for left in psutil.wait_procs(below, timeout=10)[1]:
                left.kill()


def _wait(name: str, process: subprocess.Popen[str], ready: Callable[[], bool], said: IO[str]) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return
        time.sleep(0.5)
    words = _lines(said)
    raise RuntimeError(f"{name}: did not start: {words[-1] if words else 'it said nothing'}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _lines(said: IO[str]) -> list[str]:
    """What it said so far. Read from the file's start without moving the place at which the process writes."""
    return os.pread(said.fileno(), 1 << 24, 0).decode(errors="replace").strip().splitlines()


def free_port() -> int:
    """Below the ports that the kernel gives away by itself: Ray's own sockets would take it before HAProxy does."""
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
