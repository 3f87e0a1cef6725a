"""How a life's journal is read: in groups, from a position that is remembered on disk."""

from __future__ import annotations

import os
from pathlib import Path

from serve.ledger.journal import Line, parsed, segment

# Some hundred lines: a group is parsed and written by the interpreter that requests need too.
READ_BYTES = 1 << 16


class Reader:
    """Reads the segments of one life in their order; memory is one piece of `READ_BYTES`, whatever waits."""

    def __init__(self, folder: Path, life: str, dead: bool = False) -> None:
        """`dead`: nobody writes to it any more, so that an unfinished last line is torn, not on its way."""
        self._folder, self._life, self._dead = folder, life, dead
        self._position_file = folder / f"{life}.position"
        self._number, self._offset = self._remembered()
        self._next = (self._number, self._offset)
        self.torn = 0

    def read(self) -> list[Line]:
        """What comes next, or nothing. Call `remember` when it is safe elsewhere; before that it is read again."""
        number, offset = self._number, self._offset
        while True:
            # Asked before the file is read: when the next segment exists, this one will never grow.
            follows = segment(self._folder, self._life, number + 1).exists()
            ended = follows or self._dead
            piece = self._piece(number, offset)
            whole = piece.rfind(b"\n") + 1
            if whole or (piece and not ended):
                break
            if len(piece) == READ_BYTES:  # no line is so long: rubbish, as a power cut may leave
                self.torn, offset = self.torn + 1, offset + READ_BYTES
                continue
            if not follows:
                self.torn += bool(piece)
                self._next = (number, offset + len(piece))
                return []
            self.torn += bool(piece)
            number, offset = number + 1, 0
        self._next = (number, offset + whole)
        lines = []
        for line in filter(None, piece[:whole].split(b"\n")):
            if (read := parsed(line)) is None:
                self.torn += 1
            else:
                lines.append(read)
        return lines

    def remember(self) -> int:
        """What was read is shipped: keep the position, remove finished segments. Returns the bytes removed."""
        removed = 0
        if self._next != (self._number, self._offset):
            for number in range(self._number, self._next[0]):
                path = segment(self._folder, self._life, number)
                removed += path.stat().st_size if path.exists() else 0
                path.unlink(missing_ok=True)
            self._number, self._offset = self._next
            _write_over(self._position_file, b"%010d %020d\n" % self._next)
        return removed

    def unread_bytes(self) -> int:
        """From the remembered position to the end of the last segment."""
        total = -self._offset
        number = self._number
        while (path := segment(self._folder, self._life, number)).exists():
            total += path.stat().st_size
            number += 1
        return max(0, total)

    def _piece(self, number: int, offset: int) -> bytes:
        try:
            with segment(self._folder, self._life, number).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), READ_BYTES, offset)
        except FileNotFoundError:
            return b""

    def _remembered(self) -> tuple[int, int]:
        """A lost position costs time only: to ship a line twice changes nothing."""
        there = sorted(self._folder.glob(f"{self._life}.*.journal"))
        first = int(there[0].name.split(".")[-2]) if there else 0
        try:
            number, offset = map(int, self._position_file.read_bytes().split())
        except (OSError, ValueError):
            return first, 0
        return (number, offset) if number >= first else (first, 0)


def _write_over(path: Path, words: bytes) -> None:
    """In place: the words have always the same length, and one small write is whole or not there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, words, 0)
    finally:
        os.close(descriptor)
