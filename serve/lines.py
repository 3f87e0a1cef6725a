"""Lines of a log, written where there may be no room: to a stream, or to a file that several processes share.

Writing never raises and never waits, because it happens in the life of every request. What cannot be written now waits
in memory, in order; what finds no room there is counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

MOST_WAITING = 10_000  # lines; some 5 MB
_AT_ONCE = 16  # lines that were late and that one call writes besides its own; a thread does the rest
_SOON_S, _AGAIN_S = 0.01, 0.5  # between two tries: the first, and the longest
_PIECE = select.PIPE_BUF  # bytes that a pipe takes without waiting when it says that it takes any


class Counts(NamedTuple):
    """For metrics. `lost` only grows."""

    waiting: int  # lines that could not be written yet
    lost: int  # lines for which there was no room in memory either


class Place(Protocol):
    """Where lines go."""

    def append(self, line: bytes) -> None:
        """Write the whole line or raise OSError. Never wait for a reader, or for another process."""
        ...


class Stream:
    """An open file of this process: a file, a pipe or a terminal."""

    def __init__(self, descriptor: Callable[[], int]) -> None:
        """`descriptor` may raise OSError where there is none."""
        self._descriptor, self._torn = descriptor, False

    def append(self, line: bytes) -> None:
        # A line that was cut is closed, and comes again whole.
        left, stream = b"\n" + line if self._torn else line, self._descriptor()
        ready = select.poll()
        ready.register(stream, select.POLLOUT)
        while left:
            if not ready.poll(0):
                raise BlockingIOError(errno.EAGAIN, "its reader is behind")
            written = os.write(stream, left[:_PIECE])
            self._torn = True
            left = left[written:]
        self._torn = False


class SharedFile:
    """A file that several processes append to, each line whole, and that any of them rotates when it is full.

    The older ones are PATH.1, PATH.2 and so on. They take turns by a lock on a file beside it, which ends with its
    process.
    """

    def __init__(self, path: Path, most_bytes: int, older: int) -> None:
        """`older`: how many full files are kept."""
        self._path, self._most_bytes, self._older = path, most_bytes, older
        self._lock: int | None = None
        self._file: int | None = None

    def append(self, line: bytes) -> None:
        if self._lock is None:
            self._lock = _open(self._path.with_name(f".{self._path.name}.lock"))
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            file = self._current()
            size = os.fstat(file).st_size
            if size and size + len(line) > self._most_bytes:
                rotate(self._path, self._older)
                file, size = self._current(), 0
            if size and os.pread(file, 1, size - 1) != b"\n":
                line = b"\n" + line  # the last writer was killed in the middle of its line
            if os.write(file, line) < len(line):
                os.ftruncate(file, size)  # the lock keeps other writers out
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _current(self) -> int:
        """The file that has this name now: another process may have rotated it, or an operator removed it."""
        if self._file is not None:
            try:
                if os.path.samestat(os.stat(self._path), os.fstat(self._file)):
                    return self._file
            except FileNotFoundError:
                pass
            os.close(self._file)
            self._file = None
        self._file = _open(self._path)
        return self._file


class Lines:
    """Writes lines to one place. Safe to call from any thread."""

    def __init__(
        self, place: Place, tell_lost: Callable[[int], str], most: int = MOST_WAITING, again_s: float = _AGAIN_S
    ) -> None:
        """`tell_lost` makes the line that tells how many were lost, once there is room again."""
        self._place, self._tell_lost, self._most, self._again_s = place, tell_lost, most, again_s
        self._waiting = deque[bytes]()
        self._lost = self._told = 0
        self._counting, self._writing = threading.Lock(), threading.Lock()
        self._trying = False

    def write(self, line: str) -> None:
        """A line without its end. It is out of this process before the call returns, if there is room."""
        with self._counting:
            if len(self._waiting) >= self._most:
                self._lost += 1
            else:
                self._waiting.append(line.encode(errors="backslashreplace") + b"\n")
        self._pass_on(1 + _AT_ONCE)

    def counts(self) -> Counts:
        return Counts(len(self._waiting), self._lost)

    def _pass_on(self, most: int) -> None:
        """Write what waits, at most so many lines. One thread at a time does it, for all threads."""
        try:
            while self._is_owing() and most > 0 and self._writing.acquire(blocking=False):
                try:
                    most -= self._write_some(most)
                finally:
                    self._writing.release()
        except (OSError, ValueError):  # ValueError: the stream was closed
            pass
        if self._is_owing():
            self._try_later()

    def _write_some(self, most: int) -> int:
        written = 0
        while self._waiting and written < most:
            self._place.append(self._waiting[0])
            self._waiting.popleft()
            written += 1
        if not self._waiting and (lost := self._lost - self._told):
            self._place.append(self._tell_lost(lost).encode() + b"\n")
            self._told += lost
            written += 1
        return written

    def _is_owing(self) -> bool:
        return bool(self._waiting) or self._lost > self._told

    def _try_later(self) -> None:
        with self._counting:
            if self._trying:
                return
            self._trying = True
        try:
            threading.Thread(target=self._keep_trying, name="log", daemon=True).start()
        except RuntimeError:  # no thread to be had: the next line tries again
            self._trying = False

    def _keep_trying(self) -> None:
        pause_s = _SOON_S
        while True:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, self._again_s)
            try:
                with self._writing:
                    self._write_some(self._most)
            except (OSError, ValueError):
                pass
            with self._counting:
                if not self._is_owing():
                    self._trying = False
                    return


def rotate(path: Path, older: int) -> None:
    """Let PATH be PATH.1, what was PATH.1 be PATH.2, and forget the oldest, so that `older` of them stay."""
    for number in range(older, 0, -1):
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.replace(path.with_name(f"{path.name}.{number}"))


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
