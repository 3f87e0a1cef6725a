"""Lines that the database takes for wrong, in a file for a person to read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import BinaryIO

from serve.ledger.journal import Line


class Rejected:
    """Each line whole, and once in its order.

    A group that failed, or whose position a crash forgot, is tried again from its beginning. Its rejected lines then
    lie in the file already, one behind the other, so that one look for the first of them is enough.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._again = True  # what comes next may lie in the file already
        self._at = -1  # where its line would lie; -1: not looked for yet

    def again(self) -> None:
        """The next line may have been kept before."""
        self._again, self._at = True, -1

    def keep(self, line: Line) -> None:
        """Raises OSError where the disk does not take it; nothing of it is left then."""
        text = json.dumps(line).encode() + b"\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "r+b") as file:
            if self._again and self._is_there(file, text):
                return
            self._append(file, text)
        self._again = False

    def _is_there(self, file: BinaryIO, text: bytes) -> bool:
        if self._at < 0:
            file.seek(0)
            at = 0
            for known in file:
                if known == text:
                    self._at = at
                    break
                at += len(known)
            else:
                return False
        file.seek(self._at)
        is_there = file.read(len(text)) == text
        self._at += len(text)
        return is_there

    def _append(self, file: BinaryIO, text: bytes) -> None:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            text = text if file.read(1) == b"\n" else b"\n" + text  # a crash tore the last one
        try:
            if os.write(file.fileno(), text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file.fileno(), end)
            raise
