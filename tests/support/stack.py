"""A started stack for tests: `starserve up` as a user runs it, on a free port, in folders of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil
import yaml

from serve.bench.rungs import free_port as free_port
from serve.logs import REQUESTS

METRICS_EVERY_S = 1.0  # Ray's own rhythm is ten times slower
START_WITHIN_S = 400.0  # five times what a slow machine of two cores took


def tiny_model(folder: Path, **engine: Any) -> dict[str, Any]:
    """A model's settings: the tiny StarCoder, float32, on one core."""
    small = {"device": "cpu", "dtype": "float32", "cores": 1, "max_num_seqs": 8, "kv_cache_gib": 0.25}
    return {
        "name": "tiny", "source": {"folder": str(folder)}, "context_tokens": 2048,
        "engine": {**small, "enforce_eager": True, **engine},
    }  # fmt: skip


class Stack:
    """One `starserve up`. Its state folder is short, because sockets lie in it, and is removed at the end."""

    def __init__(self, settings: Mapping[str, Any], cache: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self.base = Path(tempfile.mkdtemp(prefix="ss-", dir="/tmp"))
        self.folder = self.base / str(self.port)
        self.config = self.base / "config.yaml"
        tested = {"name": "tested", **settings, "http": {**settings.get("http", {}), "port": self.port}}
        self.config.write_text(yaml.safe_dump(tested))
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "STARSERVE_STATE": str(self.base),
            "STARSERVE_CACHE": str(cache),
            "RAY_metrics_report_interval_ms": str(round(1000 * METRICS_EVERY_S)),
        }
        self.output = self.base / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Stack:
        """Begin to start; `ready` waits."""
        with self.output.open("wb") as output:
            command = [sys.executable, "-m", "serve", "up", str(self.config)]
            self._process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)
        return self

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    def ready(self) -> Stack:
        deadline = time.monotonic() + START_WITHIN_S
        while "ready after" not in self.said():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the stack did not start: {self.said()}\n{self.logged()[-3000:]}")
            time.sleep(0.2)
        return self

    def said(self) -> str:
        return self.output.read_text()

    def logged(self) -> str:
        """Everything that it wrote: what Ray and engines say, and the lines of requests."""
        files = (self.folder / "serve.log", self.folder / REQUESTS)
        return "\n".join(file.read_text(errors="replace") for file in files if file.exists())

    def last_logged(self) -> str:
        return self.logged()[-4000:]

    def request_logged(self, reply_id: str) -> dict[str, Any]:
        """What the log tells of a request, which may come a moment after its answer."""
        wait_for(lambda: reply_id in self.logged(), within_s=15)
        return next(told for told in self.requests_logged() if told["request_id"] == reply_id)

    def requests_logged(self) -> list[Any]:
        """What the log tells of each request so far, in either style. Every line of that file is one request's."""
        file = self.folder / REQUESTS
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line) if line.startswith("{") else _read_text(line) for line in lines]

    def recorded(self) -> set[int]:
        """The ids of processes that the supervisor has written down."""
        return {pid for pid, _ in json.loads((self.folder / "processes.json").read_text())["processes"]}

    def forget(self, pid: int) -> None:
        """Take a process out of what the supervisor has written down."""
        record = self.folder / "processes.json"
        told = json.loads(record.read_text())
        record.write_text(json.dumps({**told, "processes": [row for row in told["processes"] if row[0] != pid]}))

    def end_ray_while_it_starts(self) -> None:
        """Kill the process that holds Ray, in its first seconds."""
        wait_for(lambda: "1/3 starting Ray" in self.said(), within_s=60)
        # Its own workers may be there already; the first one is Ray's parent.
        driver = next(p for p in psutil.Process(self.process.pid).children() if "serve.deploy.driver" in p.cmdline())
        driver.kill()

    def metrics(self) -> dict[str, float]:
        """What Ray's metrics port tells now: each sample by its full name with labels."""
        page = httpx.get((self.folder / "metrics.address").read_text(), timeout=30).text
        samples = (line.rsplit(" ", 1) for line in page.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def settled_metrics(self) -> dict[str, float]:
        """Metrics come in batches: wait until readings of ours and vLLM's are alike for some seconds."""
        last: dict[str, float] = {}
        while (now := {k: v for k, v in self.metrics().items() if "starserve" in k or "vllm" in k}) != last or not now:
            last = now
            time.sleep(3 * METRICS_EVERY_S)
        return now

    @property
    def key(self) -> str:
        return (self.folder / "development.key").read_text()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, headers={"Authorization": f"Bearer {self.key}"}, timeout=120)

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def named(self, name: str) -> list[psutil.Process]:
        return [p for p in self.below() if name in _words_of(p)]

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def stop(self) -> float:
        """Ctrl-C, and wait. Returns the seconds that it took."""
        began = time.monotonic()
        self.signal()
        self.process.wait(60)
        return time.monotonic() - began

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        shutil.rmtree(self.base, ignore_errors=True)


def _read_text(line: str) -> dict[str, Any]:
    """A line of the style `text`; numbers as numbers."""
    request_id, outcome, *pairs = line.partition(" request ")[2].split()
    told: dict[str, Any] = {"request_id": request_id, "outcome": outcome}
    for name, _, value in (pair.partition("=") for pair in pairs):
        told[name] = json.loads(value) if re.fullmatch(r"-?[0-9.]+(e-?\d+)?", value) else value
    return told


def _words_of(process: psutil.Process) -> str:
    """Its name and command line; nothing of one that has just died."""
    try:
        return " ".join([process.name(), *process.cmdline()])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def count(samples: Mapping[str, float], name: str, label: str = "") -> float:
    """The sum of all samples of a metric that carry a label."""
    return sum(v for k, v in samples.items() if re.match(rf"ray_{name}(_total)?{{", k) and label in k)


def wait_for(condition: Callable[[], object], within_s: float = 5, told: Callable[[], str] = str) -> None:
    """`told`: what to show when it did not come true, such as a log's end."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)
