"""A started stack with tenants: asked, watched and disturbed by tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Semaphore
from typing import Any

import httpx

from serve.database import open_database
from serve.ledger.usage import rows
from tests.support.probe import Probe
from tests.support.servers import Redis
from tests.support.stack import Stack, wait_for

LONG = 1500  # tokens of an answer that goes on for seconds
CHOICES = 8  # of a client that goes away, so that it has gone long before the answer ends


class Deployment:
    """A started stack, its ledger, and what its engines made."""

    def __init__(
        self, stack: Stack, probe: Probe, database_url: str | None = None, limits: Redis | None = None
    ) -> None:
        """`database_url`: of a PostgreSQL; without it the stack has its own SQLite."""
        self.stack, self.probe, self.limits = stack, probe, limits
        self.database = open_database(database_url or f"sqlite:///{stack.folder}/starserve.db")
        pool = httpx.Limits(max_connections=None)
        self.http = httpx.Client(base_url=stack.address, timeout=120, limits=pool)  # threads may share it

    def close(self) -> None:
        self.http.close()
        self.database.dispose()

    def tenants(self, *arguments: str) -> str:
        """`starserve tenants …`, as an administrator runs it."""
        return self._command("tenants", *arguments, "--config", str(self.stack.config))

    def ledger(self, *arguments: str) -> str:
        """`starserve ledger …` of this deployment."""
        return self._command("ledger", *arguments, "-c", str(self.stack.config))

    def _command(self, *words: str) -> str:
        whole = [sys.executable, "-m", "serve", *words]
        done = subprocess.run(whole, env=self.stack.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def enrol(self, organisation: str, **tenants: dict[str, Any]) -> dict[str, str]:
        """Import tenants, each with a key of its name; the texts of the keys by that name."""
        rows = [{"id": name, **fields, "keys": [{"name": name}]} for name, fields in tenants.items()]
        document = {"organisations": [{"id": organisation, "tenants": rows}]}
        file = self.stack.base / "tenants.yaml"
        file.write_text(json.dumps(document))  # JSON is YAML
        told = self.tenants("import", str(file))
        return dict(re.findall(r"^ +\S+ +(\S+) +(sk-\S+)", told, re.MULTILINE))

    def rows(self) -> list[dict[str, Any]]:
        return list(rows(self.database, 0, 1e12))

    @contextmanager
    def locked_ledger(self) -> Iterator[None]:
        """Somebody else holds the lock that every write of the ledger needs."""
        with self.database.connect() as holder:
            postgresql = self.database.dialect.name == "postgresql"
            holder.exec_driver_sql("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE" if postgresql else "BEGIN IMMEDIATE")
            yield
            holder.rollback()

    def settled(self) -> list[dict[str, Any]]:
        """All rows, once none is open and nothing comes any more."""
        wait_for(lambda: self.probe.running() == 0, within_s=60)
        before: list[dict[str, Any]] = []
        deadline = time.monotonic() + 90
        while (now := self.rows()) != before or any(row["closed_s"] is None for row in now):
            assert time.monotonic() < deadline, [row for row in now if row["closed_s"] is None]
            before = now
            time.sleep(2)
        return now


def ask(deployment: Deployment, key: str, path: str = "/v1/completions", **changes: Any) -> httpx.Response:
    if path != "/v1/completions":
        return deployment.http.get(path, headers=bearer(key))
    body = {"model": "tiny", "prompt": "def f(x):", "max_tokens": 8, "ignore_eos": True, **changes}
    return deployment.http.post(path, json=body, headers=bearer(key))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def answered_in_s(deployment: Deployment, key: str) -> float:
    began = time.monotonic()
    assert ask(deployment, key).status_code == 200
    return time.monotonic() - began


def ttft_s(deployment: Deployment, key: str) -> float:
    """Of an answer of 8 tokens, read to its end."""
    body = {"model": "tiny", "prompt": "def f(x):", "max_tokens": 8, "ignore_eos": True, "stream": True}
    began = time.monotonic()
    with deployment.http.stream("POST", "/v1/completions", json=body, headers=bearer(key)) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        next(line for line in lines if line.startswith("data"))
        first = time.monotonic() - began
        assert [line for line in lines if line][-1] == "data: [DONE]"
    return first


def leave_streams(deployment: Deployment, key: str, streams: int) -> None:
    """Several clients that go away in the middle."""

    def leave(_: int) -> None:
        with long_stream(deployment, key, n=CHOICES) as answer:
            lines = answer.iter_lines()
            for _ in range(5):
                next(line for line in lines if line.startswith("data"))

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(leave, range(streams)))


@contextmanager
def broken_streams(deployment: Deployment, key: str, streams: int) -> Iterator[None]:
    """Long answers, each of which has begun; their server may die now."""
    begun, told = Semaphore(0), list[str]()
    # HAProxy takes a router that is slow to answer it, as on a busy machine, for dead for a while.
    wait_for(lambda: ask(deployment, key, max_tokens=1).status_code == 200, within_s=60)

    def read() -> None:
        try:
            with long_stream(deployment, key) as answer:
                told.append(str(answer.status_code))
                for number, _ in enumerate(answer.iter_lines()):
                    if number == 20:
                        begun.release()
        except httpx.HTTPError as e:
            told.append(type(e).__name__)

    with ThreadPoolExecutor(streams) as pool:
        reading = [pool.submit(read) for _ in range(streams)]
        for _ in range(streams):
            assert begun.acquire(timeout=30), (told, deployment.stack.logged()[-2000:])
        assert not any(one.done() for one in reading), (told, deployment.stack.logged()[-2000:])
        yield


def long_stream(deployment: Deployment, key: str, n: int = 1) -> AbstractContextManager[httpx.Response]:
    body = {"model": "tiny", "prompt": "x", "max_tokens": LONG, "ignore_eos": True, "stream": True, "n": n}
    return deployment.http.stream("POST", "/v1/completions", json=body, headers=bearer(key))
