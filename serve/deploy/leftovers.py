"""What an instance leaves behind when it or a part of it is killed: processes, and shared memory that they mapped.

Processes are known by recorded ids and start times, and by a mark in their environment, which they got at their start:
one that was born after the last record is found by it. The mark is a secret of the instance's folder, so a folder that
was removed and made again knows nothing of the instance before it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

MARK = "STARSERVE_INSTANCE"  # in the environment of every process below a supervisor
_RECORD, _MARK = "processes.json", "mark"
_SHARED = "/dev/shm/"
_Born = tuple[int, float]  # a process by its id and start time: ids come again


class Leftovers:
    """Of the instance with this folder."""

    def __init__(self, folder: Path) -> None:
        self._record, self._mark = folder / _RECORD, folder / _MARK
        self._mapped_by = dict[str, set[_Born]]()

    def mark(self) -> str:
        """The value of MARK; made once per folder."""
        if not self._mark.exists():
            self._mark.touch(0o600)
            self._mark.write_text(secrets.token_hex(16))
        return self._mark.read_text()

    def record(self) -> None:
        """Write down every process below this one, and the shared memory that they map.

        Removes shared memory whose recorded processes are dead and that no process maps. Raises OSError on a full disk.
        """
        below = dict(_born(psutil.Process().children(recursive=True)))
        names = _names()
        for born, process in below.items():
            for path in _mapped([process.pid], names):
                self._mapped_by.setdefault(path, set()).add(born)
        left = {path for path, by in self._mapped_by.items() if not by & below.keys()}
        _remove_shared_memory(left)
        for path in left:
            del self._mapped_by[path]
        beside = self._record.with_suffix(".new")
        beside.write_text(json.dumps({"processes": list(below), "shared_memory": sorted(self._mapped_by)}))
        beside.replace(self._record)

    def clean(self) -> int:
        """End what was recorded or bears the mark and still runs, and remove its shared memory. Returns how many ran.

        The caller must hold the lock of the instance: then all of it belongs to a supervisor that is dead.
        """
        try:
            record = json.loads(self._record.read_text())
        except (OSError, ValueError):
            record = {"processes": [], "shared_memory": []}
        left = _recorded(record["processes"]) | self._marked()
        shared = {*record["shared_memory"], *self._mapped_by, *_mapped(p.pid for p in left)}
        end(list(left))
        _remove_shared_memory(shared)
        self._mapped_by.clear()
        self._record.unlink(missing_ok=True)
        return len(left)

    def _marked(self) -> set[psutil.Process]:
        if not self._mark.exists():
            return set()
        wanted, own = f"{MARK}={self._mark.read_text()}".encode(), psutil.Process()
        found = {p for p in psutil.process_iter() if wanted in _environment(p.pid)}
        return found - {own, *own.parents()}


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


def _born(processes: Iterable[psutil.Process]) -> Iterable[tuple[_Born, psutil.Process]]:
    for process in processes:
        try:
            yield (process.pid, process.create_time()), process
        except psutil.NoSuchProcess:
            continue


def _recorded(rows: Iterable[_Born]) -> set[psutil.Process]:
    found = set()
    for pid, created in rows:
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - created) < 1:
                found.add(process)
        except psutil.NoSuchProcess:
            continue
    return found


def _environment(pid: int) -> list[bytes]:
    """What a process got at its start; nothing of one that has ended, or that belongs to another user."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _names() -> dict[int, str]:
    """The files in /dev/shm by inode."""
    try:
        return {entry.inode(): entry.path for entry in os.scandir(_SHARED)}
    except FileNotFoundError:
        return {}


def _mapped(pids: Iterable[int], names: Mapping[int, str] | None = None) -> set[str]:
    """Files in /dev/shm that these processes map.

    Known by inode: glibc makes a semaphore under another name, by which it is mapped, and then gives it its own.
    """
    found, known = set(), _names() if names is None else names
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        except OSError:
            continue
        found |= {int(line.split(maxsplit=5)[4]) for line in lines if _SHARED in line}
    return {known[inode] for inode in found & known.keys()}


def _remove_shared_memory(paths: Iterable[str]) -> None:
    left = {path for path in paths if path.startswith(_SHARED) and Path(path).exists()}
    for path in left - (_mapped(psutil.pids()) if left else set()):
        Path(path).unlink(missing_ok=True)
