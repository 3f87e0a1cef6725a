"""Two stacks of one run, in two processes: what each must know of the other, in files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.support.stack import START_WITHIN_S, Stack, wait_for

BROKEN_WITHIN_S = 500.0  # before the test that waits is ended for its length


class Neighbours:
    """`folder` is the same for both processes. `variant` names the pair."""

    def __init__(self, folder: Path, variant: str) -> None:
        self._shared, self._breaking = folder / f"{variant}.shared", folder / f"{variant}.breaking"

    def tell(self, stack: Stack) -> None:
        """The shared stack is ready."""
        beside = self._shared.with_suffix(".written")
        beside.write_text(json.dumps([stack.address, stack.key]))
        beside.replace(self._shared)

    def answers(self) -> bool:
        """Whether the shared stack, which may still start, answers a request."""
        wait_for(self._shared.exists, within_s=START_WITHIN_S)
        address, key = json.loads(self._shared.read_text())
        body, headers = {"model": "tiny", "prompt": "x", "max_tokens": 2}, {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60).status_code == 200

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """As long as the other stack is there to be broken."""
        self._breaking.write_text(str(os.getpid()))
        try:
            yield
        finally:
            self._breaking.unlink()

    def wait_until_broken(self) -> None:
        """Until nobody looks at the shared stack any more."""
        wait_for(lambda: not self._is_breaking(), within_s=BROKEN_WITHIN_S)

    def _is_breaking(self) -> bool:
        try:
            return psutil.pid_exists(int(self._breaking.read_text()))
        except (FileNotFoundError, ValueError):
            return False
