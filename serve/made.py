"""How many tokens each engine handed out, in files that outlive it: what a ledger is compared with, whoever was killed.

A file per engine, which the engine maps. What it wrote there survives its `kill -9`, though not a power cut.
"""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path
from typing import NamedTuple

FOLDER = "made"  # in the folder of an instance
_FILE = struct.Struct("<dq")


class Count(NamedTuple):
    """Of one engine. `since_s`: unix seconds."""

    since_s: float
    output_tokens: int


class Made:
    """The count of one engine, by its replica's name. Only that replica writes it."""

    def __init__(self, folder: Path, engine: str) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / engine).open("w+b") as file:
            file.truncate(_FILE.size)
            self._map = mmap.mmap(file.fileno(), _FILE.size)
        self._count = Count(time.time(), 0)
        self.add(0)

    def add(self, tokens: int) -> None:
        self._count = Count(self._count.since_s, self._count.output_tokens + tokens)
        _FILE.pack_into(self._map, 0, *self._count)


def read_made(folder: Path) -> dict[str, Count]:
    """By engine, of all that ever counted in this folder."""
    files = sorted(folder.iterdir()) if folder.exists() else []
    texts = {file.name: file.read_bytes() for file in files}
    return {name: Count(*_FILE.unpack(text)) for name, text in texts.items() if len(text) == _FILE.size}
