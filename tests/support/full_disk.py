"""A disk without room: for all files of this process, or for the lines of one log."""

from __future__ import annotations

import errno
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond this: a write is cut there, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Room:
    """A place for `serve.lines.Lines` that takes lines unless it is full."""

    def __init__(self, full: threading.Event, told: list[str]) -> None:
        self._full, self._told = full, told

    def append(self, line: bytes) -> None:
        if self._full.is_set():
            raise OSError(errno.ENOSPC, "no space left")
        self._told.append(line.decode().removesuffix("\n"))
