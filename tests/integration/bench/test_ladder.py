"""What `starserve bench ladder` refuses before it starts anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def starserve(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "STARSERVE_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_peers_that_are_not_set_up_are_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "loadtest" / "peers").mkdir(parents=True)
    done = starserve("bench", "ladder", "--peers", str(tmp_path / "loadtest" / "peers"), cache=tmp_path)
    assert done.returncode == 2
    assert "is not there; run" in done.stderr
    assert str(tmp_path / "loadtest" / "peers" / "setup") in done.stderr


def test_a_model_that_is_not_prepared_is_named_with_what_to_do(tmp_path: Path) -> None:
    done = starserve("bench", "ladder", cache=tmp_path)
    assert done.returncode == 2
    assert "is not prepared: run `starserve model prepare`" in done.stderr
