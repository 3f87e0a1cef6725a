"""How many tokens each engine handed out, in files that outlive it: what a ledger is compared with, whoever was killed.

A file per engine, which the engine maps. What it wrote there survives its `kill -9`, though not a power cut.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FOLDER = "made"  # in the folder of an instance
_AGAIN_S = 5.0  # between two tries while the disk is full
_FILE = struct.Struct("<dq")


class Count(NamedTuple):
    """Of one engine. `since_s`: unix seconds."""

    since_s: float
    output_tokens: int


class Made:
    """The count of one engine, by its replica's name. Only that replica writes it.

    A full disk stops no engine: what was counted meanwhile waits in memory, and is written when there is room.
    """

    def __init__(
        self, folder: Path, engine: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`say` gets a sentence when the count cannot be kept, and when it can again. It never raises."""
        self._file, self._say, self._clock = folder / engine, say, clock
        self._count = Count(time.time(), 0)
        self._map: mmap.mmap | None = None
        self._told_full, self._again_s = False, -math.inf
        self.add(0)

    def add(self, tokens: int) -> None:
        self._count = Count(self._count.since_s, self._count.output_tokens + tokens)
        if self._map is None and self._clock() >= self._again_s:
            self._open()
        if self._map is not None:
            _FILE.pack_into(self._map, 0, *self._count)

    def _open(self) -> None:
        self._again_s = self._clock() + _AGAIN_S
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._file.open("w+b") as file:
                # A page of a file with holes that finds no room when it is written to ends the process (SIGBUS).
                os.posix_fallocate(file.fileno(), 0, _FILE.size)
                self._map = mmap.mmap(file.fileno(), _FILE.size)
        except OSError as e:
            if not self._told_full:
                self._told_full = True
                self._say(f"what this engine makes cannot be counted on disk ({e.strerror}); it is counted in memory")
            return
        if self._told_full:
            self._say("what this engine makes is counted on disk again; nothing is missing")


def read_made(folder: Path) -> dict[str, Count]:
    """By engine, of all that ever counted in this folder."""
    files = sorted(folder.iterdir()) if folder.exists() else []
    texts = {file.name: file.read_bytes() for file in files}
    return {name: Count(*_FILE.unpack(text)) for name, text in texts.items() if len(text) == _FILE.size}
