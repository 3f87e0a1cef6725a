"""Room on the disk: asked for before long work begins, and not taken twice for the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from serve.settings import SettingsError

MEGABYTE = 1_000_000
_MARGIN_BYTES = 64 * MEGABYTE  # manifest, indices, and whoever else writes meanwhile


def require(place: Path, wanted_bytes: int, field: str) -> None:
    """Raise SettingsError if `place` has not this many bytes free and some more."""
    free = shutil.disk_usage(place).free
    if free < wanted_bytes + _MARGIN_BYTES:
        wanted = (wanted_bytes + _MARGIN_BYTES) / MEGABYTE
        raise SettingsError(
            f"{field}: preparing this model needs {wanted:,.0f} MB of disk, {free / MEGABYTE:,.0f} MB are free in "
            f"{place}; make room, or set STARSERVE_CACHE to a larger disk"
        )


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file of our own a second name; copy it where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
