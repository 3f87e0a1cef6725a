"""A measurement in a process of its own: its task as JSON on standard input, its findings as JSON lines on output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any


def findings(
    module: str, task: Mapping[str, Any], name: str, environment: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """What `python -m MODULE` prints, as it prints it. RuntimeError with its reason where it fails."""
    with (
        # vLLM puts the sockets to its core there and leaves them behind.
        tempfile.TemporaryDirectory(prefix="bench-") as sockets,
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env={**os.environ, "VLLM_RPC_BASE_PATH": sockets, **(environment or {})},
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it has ended already, and says why below
                process.stdin.write(json.dumps(task))
                process.stdin.close()
            # Libraries print on standard output too.
            yield from (json.loads(line) for line in process.stdout if line.startswith(("[", "{")))
        except BaseException:
            process.terminate()  # whoever wanted to know has left; an engine would go on for nobody
            raise
        if status := process.wait():
            errors.seek(0)
            raise RuntimeError(f"{name}: {_reason(errors.read()) or f'ended with status {status}'}")


def _reason(errors: str) -> str:
    """The exception of the last traceback; else the last words. Libraries complain after both of what was not freed."""
    lines = errors.strip().splitlines()
    tracebacks = [place for place, line in enumerate(lines) if line.startswith("Traceback ")]
    after = lines[tracebacks[-1] + 1 :] if tracebacks else []
    return next((line for line in after if line and not line[0].isspace()), lines[-1] if lines else "")
