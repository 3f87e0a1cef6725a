"""Folders of instances, and processes that seem to belong to one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from serve.deploy.leftovers import MARK

_T = TypeVar("_T", str, bytes)
_HOLD = """
import sys, time
from pathlib import Path
from serve.deploy.instance import Instance
instance = Instance(int(sys.argv[1]))
instance.make()
instance.hold(Path(sys.argv[2]))
print("held", flush=True)
time.sleep(600)
"""

_RECORD = """
import os, subprocess, sys
from serve.deploy.instance import Instance
instance = Instance(int(sys.argv[1]))
instance.make()
sleeping = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
instance.left.record()
print(sleeping.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@contextmanager
def state_folder() -> Iterator[Path]:
    """A short one, for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def supervisor(state: Path, port: int, config: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds an instance as `starserve up` does, and serves nothing."""
    given = {**os.environ, "STARSERVE_STATE": str(state), **environment}
    with ended(
        subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(port), str(config)], env=given, text=True, stdout=subprocess.PIPE
        )
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@contextmanager
def _killed_at_the_end(process: psutil.Process) -> Iterator[psutil.Process]:
    try:
        yield process
    finally:
        if runs(process):
            process.kill()


@contextmanager
def recorded(state: Path, port: int) -> Iterator[psutil.Process]:
    """A process that a supervisor has written down, who was then killed."""
    given = {**os.environ, "STARSERVE_STATE": str(state)}
    said = subprocess.run([sys.executable, "-c", _RECORD, str(port)], env=given, text=True, stdout=subprocess.PIPE)
    with _killed_at_the_end(psutil.Process(int(said.stdout))) as left:
        yield left


@contextmanager
def belonging(mark: str) -> Iterator[psutil.Process]:
    """A process that sleeps, with this mark of an instance, and that nobody wrote down. It is not below this one."""
    given = {**os.environ, MARK: mark}
    command = ["sh", "-c", "sleep 600 >&- & echo $!"]
    said = subprocess.run(command, env=given, stdout=subprocess.PIPE, text=True, check=True)
    with _killed_at_the_end(psutil.Process(int(said.stdout))) as left:
        yield left


@contextmanager
def ended(process: subprocess.Popen[_T]) -> Iterator[subprocess.Popen[_T]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone_within(process: psutil.Process, within_s: float = 5) -> bool:
    deadline = time.monotonic() + within_s
    while runs(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not runs(process)
