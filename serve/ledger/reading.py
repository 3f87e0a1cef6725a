"""How a life's journal is read: in groups, from a position that is remembered on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from serve.ledger.journal import Line, Place, parsed, segment

# Some hundred lines: a group is parsed and written by the interpreter that requests need too.
READ_BYTES = 1 << 16


class Reader:
    """Reads the segments of one life in their order; memory is one piece of `READ_BYTES`, whatever waits."""

    def __init__(self, folder: Path, life: str, dead: bool = False) -> None:
        """`dead`: nobody writes to it any more, so that an unfinished last line is torn, not on its way."""
        self._folder, self._life, self._dead = folder, life, dead
        self._position_file = folder / f"{life}.position"
        self.place = self._next = self._remembered()
        self._first = self.place.number  # the oldest segment that may still lie there
        self._is_noted = True  # whether the position file says where we are
        self._torn_before = self._torn_now = 0
        self.trouble = ""  # why the place could not be noted; "": it could

    @property
    def torn(self) -> int:
        """Lines that were cut, each counted once however often its group is read."""
        return self._torn_before + self._torn_now

    def read(self) -> list[Line]:
        """What comes next; nothing only where there is no whole line any more, however many torn ones stand before.

        Call `remember` when it is safe elsewhere; before that it is read again.
        """
        number, offset = self.place
        self._torn_now = 0
        while True:
            # Asked before the file is read: when the next segment exists, this one will never grow.
            follows = segment(self._folder, self._life, number + 1).exists()
            piece = self._piece(number, offset)
            if whole := piece.rfind(b"\n") + 1:
                offset += whole
                if lines := self._parsed(piece[:whole]):
                    break
            elif len(piece) == READ_BYTES:  # no line is so long: rubbish, as a power cut may leave
                self._torn_now, offset = self._torn_now + 1, offset + READ_BYTES
            else:
                lines = []
                if piece and not (follows or self._dead):
                    break  # its end is on its way
                self._torn_now += bool(piece)
                if not follows:
                    offset += len(piece)
                    break
                number, offset = number + 1, 0
        self._next = Place(number, offset)
        return lines

    def remember(self) -> int:
        """What was read is shipped: note the position, remove finished segments. Returns the bytes removed.

        Never raises: what a disk does not allow now is in `trouble`, and the next call tries it again. Meanwhile a
        crash costs time only, because a line that is shipped twice changes nothing.
        """
        if self._next != self.place:
            self.place, self._is_noted = self._next, False
        self._torn_before, self._torn_now = self.torn, 0
        removed, self.trouble = 0, ""
        try:
            while self._first < self.place.number:
                path = segment(self._folder, self._life, self._first)
                size = path.stat().st_size if path.exists() else 0
                path.unlink(missing_ok=True)
                removed, self._first = removed + size, self._first + 1
            if not self._is_noted:
                _write_over(self._position_file, b"%010d %020d\n" % self.place)
                self._is_noted = True
        except OSError as e:
            self.trouble = e.strerror or type(e).__name__
        return removed

    def unread_bytes(self) -> int:
        """From the remembered position to the end of the last segment. Any thread may ask."""
        number, offset = self.place
        total = -offset
        try:
            while (path := segment(self._folder, self._life, number)).exists():
                total += path.stat().st_size
                number += 1
        except OSError:  # the shipper's thread removed it in between
            pass
        return max(0, total)

    def _parsed(self, whole: bytes) -> list[Line]:
        lines = []
        for line in filter(None, whole.split(b"\n")):
            if (read := parsed(line)) is None:
                self._torn_now += 1
            else:
                lines.append(read)
        return lines

    def _piece(self, number: int, offset: int) -> bytes:
        try:
            with segment(self._folder, self._life, number).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), READ_BYTES, offset)
        except FileNotFoundError:
            return b""

    def _remembered(self) -> Place:
        """A lost position costs time only: to ship a line twice changes nothing."""
        there = sorted(self._folder.glob(f"{self._life}.*.journal"))
        first = int(there[0].name.split(".")[-2]) if there else 0
        try:
            noted = Place(*map(int, self._position_file.read_bytes().split()))
        except (OSError, ValueError, TypeError):
            return Place(first, 0)
        return noted if noted.number >= first else Place(first, 0)


def _write_over(path: Path, words: bytes) -> None:
    """In place: the words have always the same length, and one small write is whole or not there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        if os.pwrite(descriptor, words, 0) < len(words):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
