"""The router's own append-only journal: what is written here survives `kill -9` (not a power cut: nothing is synced).

A line is `KIND CHECKSUM JSON`, one `os.write` each, so that a line torn by a crash is seen and dropped. One life of a
process owns `LIFE.lock`, locked as long as it lives, and `LIFE.NNNNNN.journal`, one segment after the other.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

Kind = Literal["o", "m", "c", "n"]  # opened, mark, closed, number of refusals
_KINDS = frozenset(b"omcn")
SEGMENT_BYTES = 16 << 20
MOST_BYTES = 4 << 30
MOST_WAITING = 100_000  # lines kept in memory while the disk is full: some 50 MB
_PASSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN})  # what keeps files from being made now


class Place(NamedTuple):
    """In a life's journal: which segment, and how many bytes of it."""

    number: int
    offset: int


class Line(NamedTuple):
    kind: str
    values: dict[str, Any]


def framed(kind: Kind, values: Mapping[str, Any]) -> bytes:
    told = json.dumps(values, separators=(",", ":")).encode()
    return b"%s %08x %s\n" % (kind.encode(), crc32(told, ord(kind)), told)


def parsed(line: bytes) -> Line | None:
    """None: torn, or not ours."""
    kind, _, rest = line.partition(b" ")
    checksum, _, told = rest.partition(b" ")
    if len(kind) != 1 or kind[0] not in _KINDS or checksum != b"%08x" % crc32(told, kind[0]):
        return None
    return Line(kind.decode(), json.loads(told))


def segment(folder: Path, life: str, number: int) -> Path:
    return folder / f"{life}.{number:06}.journal"


def locked(path: Path) -> int | None:
    """A descriptor that holds the lock of a life until it is closed; None: somebody alive has it, or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # else its owner removed it before we had the lock
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def forget(folder: Path, life: str) -> None:
    """Remove a life's files, its lock last; the caller holds it. What was rejected stays for a person to read."""
    for path in (*folder.glob(f"{life}.*.journal"), folder / f"{life}.position", folder / f"{life}.lock"):
        path.unlink(missing_ok=True)


class Journal:
    """Of this process. Never raises once it is open: what a full disk does not take waits in memory, and what finds
    no place there either is counted in `unwritten`. `write` may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        router: str,
        segment_bytes: int = SEGMENT_BYTES,
        most_bytes: int = MOST_BYTES,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """`most_bytes`: of lines not shipped yet; above that the disk counts as full. `most_waiting`: lines in memory.

        A disk that is full already keeps no router from starting: the files are made as soon as there is room.
        """
        # Only whole segments go: with a single one, a journal that is full would stay full.
        self.folder, self._segment_bytes, self._most_bytes = folder, min(segment_bytes, most_bytes // 4), most_bytes
        self.unwritten, self.last_error, self._most_waiting = 0, "", most_waiting
        self.held_bytes = 0  # in all segments that still exist
        self._mutex, self._waiting, self._torn = threading.Lock(), deque[bytes](), False
        self.life = f"{re.sub(r'[^A-Za-z0-9_-]', '-', router)}-{time.time_ns():x}-{os.getpid():x}"
        self._number, self._size = 0, 0
        self.end = Place(0, 0)  # of the last whole line
        self._file = self._lock = -1
        self._is_closed = False
        try:
            self._begin()
        except OSError as e:
            if e.errno not in _PASSES:
                raise
            self.last_error = e.strerror or type(e).__name__

    @property
    def waiting(self) -> int:
        """Lines that a full disk did not take."""
        return len(self._waiting)

    def write(self, kind: Kind, values: Mapping[str, Any]) -> bool:
        """Whether it is on disk now."""
        line = framed(kind, values)
        with self._mutex:
            if not self._waiting and self._append(line):
                return True
            if len(self._waiting) < self._most_waiting:
                self._waiting.append(line)
            else:
                self.unwritten += 1
            return False

    def write_waiting(self) -> None:
        """Try again what a full disk did not take, in its order."""
        while self._waiting:
            with self._mutex:
                line = self._waiting.popleft()
                if not self._append(line):
                    self._waiting.appendleft(line)
                    return

    def forget(self, shipped_bytes: int) -> None:
        """A segment was shipped and removed."""
        with self._mutex:
            self.held_bytes -= shipped_bytes

    def close(self, remove: bool) -> None:
        """`remove`: everything is shipped and nothing is open, so that nobody need look for this life."""
        with self._mutex:
            if self._file >= 0:
                os.close(self._file)
            if self._lock >= 0:
                if remove:
                    forget(self.folder, self.life)
                os.close(self._lock)
            # A late write fails, rather than go into another's file.
            self._file, self._lock, self._is_closed = -1, -1, True

    def _append(self, line: bytes) -> bool:
        if self.held_bytes + len(line) > self._most_bytes:
            self.last_error = f"{self._most_bytes} bytes are not shipped yet"
            return False
        try:
            if self._file < 0:
                self._begin()
            if self._size >= self._segment_bytes:
                self._next_segment()
            # A torn line before this one must not take it along.
            whole = b"\n" + line if self._torn else line
            written = os.write(self._file, whole)
        except OSError as e:
            self.last_error = e.strerror or type(e).__name__
            return False
        self._size += written
        self.held_bytes += written
        self._torn = written < len(whole)
        if self._torn:
            self.last_error = os.strerror(errno.ENOSPC)
        else:
            self.end = Place(self._number, self._size)
        return not self._torn

    def _begin(self) -> None:
        """Take this life's lock, which tells the living from the dead, and begin its first segment."""
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._lock < 0:
            path = self.folder / f"{self.life}.lock"
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            if (descriptor := locked(path)) is None:  # taken for a dead one's in between, and gone in a moment
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self._lock = descriptor
        self._file = self._open_segment()

    def _next_segment(self) -> None:
        self._number += 1
        try:
            file = self._open_segment()
        except OSError:
            self._number -= 1
            raise
        os.close(self._file)
        self._file, self._size, self._torn = file, 0, False

    def _open_segment(self) -> int:
        path = segment(self.folder, self.life, self._number)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
