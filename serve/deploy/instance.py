"""What one instance owns on a machine: a 0700 folder with keys, sockets, logs and records, and ports.

Its supervisor holds a lock on the folder as long as it lives. Who does not hold it only looks.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import psutil

from serve.deploy.leftovers import Leftovers
from serve.lines import rotate
from serve.settings import LONGEST_INSTANCE_FOLDER, SettingsError, instance_folder

NOT_STARTED = "engine did not start:"
LOG_BYTES, OLDER_LOGS = 32 << 20, 4  # of the log that is written to, and full ones that are kept
_OWNER = "owner"
_TRIES, _PAUSE_S = 10, 0.05  # a command that reads the owner holds the lock for a moment
_LAST_WORDS_BYTES = 1 << 20


class Owner(NamedTuple):
    """The supervisor that holds an instance, or held it last."""

    pid: int
    since: str  # ISO 8601, UTC
    config: str  # its YAML, from the root

    def __str__(self) -> str:
        return f"pid {self.pid}, since {self.since}"


class Instance:
    """The folder of one instance: keys, sockets, HAProxy's files, Ray's session, logs, recorded processes."""

    def __init__(self, port: int, environment: Mapping[str, str] = os.environ) -> None:
        self.port, self.folder = port, instance_folder(port, environment)
        self.development_key = self.folder / "development.key"
        self._stage = self.folder / "stage"
        self.log = self.folder / "serve.log"
        self.metrics = self.folder / "metrics.address"
        self.left = Leftovers(self.folder)
        self._log_began = 0

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

    def hold(self, config: Path) -> None:
        """Be its supervisor until this process ends, however that ends. SettingsError names the one that there is."""
        lock = os.open(self.folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_PAUSE_S)
        else:
            os.close(lock)
            raise SettingsError(f"http.port: {self.port}: already running ({self.owner() or 'it has just ended'})")
        since = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(Owner(os.getpid(), since, str(config.absolute()))._asdict()).encode(), 0)

    def owner(self) -> Owner | None:
        """The supervisor that holds it now."""
        try:
            lock = os.open(self.folder / _OWNER, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self.last_owner() or Owner(0, "a moment ago", "")
        finally:
            os.close(lock)
        return None

    def last_owner(self) -> Owner | None:
        """The supervisor that holds it, or held it last."""
        try:
            return Owner(**json.loads((self.folder / _OWNER).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def reach(self, stage: str) -> None:
        """The driver tells how far the start has come."""
        beside = self.folder / "stage.new"
        beside.write_text(stage)
        beside.replace(self._stage)

    def stage(self) -> str:
        return self._stage.read_text() if self._stage.exists() else "starting"

    def open_log(self) -> BinaryIO:
        """For the next driver to write to, behind what those before it wrote."""
        self.rotate_log()
        log = self.log.open("ab")
        self._log_began = log.tell()
        return log

    def reason(self) -> str:
        """Why the server ended by itself: the last word of an engine or of the driver, or where to read."""
        with self.log.open("rb") as log:
            size = os.fstat(log.fileno()).st_size
            log.seek(max(self._log_began if self._log_began <= size else 0, size - _LAST_WORDS_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        told = [line[line.index(NOT_STARTED) :] for line in lines if NOT_STARTED in line]
        return told[-1] if told else f"the server ended by itself; its last words are in {self.log}"

    def rotate_log(self) -> bool:
        """Begin a new log where this one is full. Returns True when the driver must open its log again."""
        if not self.log.exists() or self.log.stat().st_size < LOG_BYTES:
            return False
        rotate(self.log, OLDER_LOGS)
        return True

    def clean(self) -> int:
        """Remove what a dead supervisor left. The caller must hold the lock. Returns how many processes still ran."""
        ended = self.left.clean()
        for name in ("ray", "p", "t"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self._stage.unlink(missing_ok=True)
        return ended


def instances(environment: Mapping[str, str] = os.environ) -> list[Instance]:
    """All that were ever served by this user with these folders, running or not, by port."""
    folders = {instance_folder(port, environment).parent for port in (1, 65535)}
    ports = {int(f.parent.name) for folder in folders for f in folder.glob(f"*/{_OWNER}") if f.parent.name.isdecimal()}
    return [Instance(port, environment) for port in sorted(ports)]


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
