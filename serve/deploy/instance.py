"""What one instance owns on a machine: a 0700 folder, processes, shared memory, ports. Known by recorded ids."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from serve.settings import LONGEST_INSTANCE_FOLDER, SettingsError, instance_folder

NOT_STARTED = "engine did not start:"
_RECORD = "processes.json"


class Instance:
    """The folder of one instance: keys, sockets, HAProxy's files, Ray's session, recorded processes."""

    def __init__(self, port: int, environment: Mapping[str, str] = os.environ) -> None:
        self.folder = instance_folder(port, environment)
        self.development_key = self.folder / "development.key"
        self._stage = self.folder / "stage"
        self.log = self.folder / "serve.log"
        self.metrics = self.folder / "metrics.address"
        self._shared_memory: set[str] = set()

    def make(self) -> None:
        if len(str(self.folder)) > LONGEST_INSTANCE_FOLDER:
            raise SettingsError(
                f"{self.folder}: too long for the sockets inside; name a folder of at most "
                f"{LONGEST_INSTANCE_FOLDER - 6} characters in STARSERVE_STATE"
            )
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise SettingsError(f"{folder}: belongs to another user; name one of your own in STARSERVE_STATE")
        self.folder.chmod(0o700)

    def reach(self, stage: str) -> None:
        """The driver tells how far the start has come."""
        beside = self.folder / "stage.new"
        beside.write_text(stage)
        beside.replace(self._stage)

    def stage(self) -> str:
        return self._stage.read_text() if self._stage.exists() else "starting"

    def reason(self) -> str:
        """Why the server ended by itself: the last word of an engine, or where to read."""
        lines = self.log.read_text(errors="replace").splitlines()
        told = [line[line.index(NOT_STARTED) :] for line in lines if NOT_STARTED in line]
        return told[-1] if told else f"the server ended by itself; its last words are in {self.log}"

    def record(self) -> None:
        """Write down every process below this one, by id and start time, and the shared memory that they map."""
        below = psutil.Process().children(recursive=True)
        self._shared_memory |= _mapped(p.pid for p in below)
        rows = []
        for process in below:
            try:
                rows.append((process.pid, process.create_time()))
            except psutil.NoSuchProcess:
                continue
        beside = self.folder / f"{_RECORD}.new"
        beside.write_text(json.dumps({"processes": rows, "shared_memory": sorted(self._shared_memory)}))
        beside.replace(self.folder / _RECORD)

    def clean(self) -> int:
        """End what was recorded and still runs, remove its shared memory and session. Returns how many ran."""
        try:
            record = json.loads((self.folder / _RECORD).read_text())
        except (OSError, ValueError):
            record = {"processes": [], "shared_memory": []}
        left = []
        for pid, created in record["processes"]:
            try:
                process = psutil.Process(pid)
                if abs(process.create_time() - created) < 1:
                    left.append(process)
            except psutil.NoSuchProcess:
                continue
        end(left)
        _remove_shared_memory(record["shared_memory"])
        for name in ("ray", "p", "t"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self._stage.unlink(missing_ok=True)
        (self.folder / _RECORD).unlink(missing_ok=True)
        return len(left)


def end(processes: list[psutil.Process]) -> None:
    """Kill, and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)


def end_below() -> None:
    """Kill all descendants of this process, those too that are born meanwhile."""
    while left := psutil.Process().children(recursive=True):
        end(left)


def reap_orphans(driver: int) -> None:
    """Bury the dead that were left to this process, but not the driver, whose exit status is still wanted."""
    for child in psutil.Process().children():
        if child.pid != driver and child.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(child.pid, os.WNOHANG)


def port_is_busy(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def claim_ports(size: int) -> socket.socket:
    """Claim `size` neighbouring ports on loopback that nobody listens on: those up to the returned socket's own.

    The claim holds as long as that socket is open, so two instances that start at once never share a range.
    """
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr}
    for low in range(20_000, 32_000, size):
        if not taken & set(range(low, low + size)):
            claim = socket.socket()
            try:
                claim.bind(("127.0.0.1", low + size - 1))
                claim.listen(1)
            except OSError:
                claim.close()
                continue
            return claim
    raise SettingsError(f"no {size} neighbouring free ports between 20000 and 32000")


def _mapped(pids: Iterable[int]) -> set[str]:
    """Files in /dev/shm that these processes map."""
    found = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        except OSError:
            continue
        found |= {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line}
    return {path for path in found if not path.endswith("(deleted)")}


def _remove_shared_memory(paths: Iterable[str]) -> None:
    left = {path for path in paths if path.startswith("/dev/shm/") and Path(path).exists()}
    for path in left - (_mapped(psutil.pids()) if left else set()):
        Path(path).unlink(missing_ok=True)
