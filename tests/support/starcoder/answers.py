"""Prints the greedy answers of an engine: `python -m tests.support.starcoder.answers FOLDER ENGINE-SETTINGS-IN-JSON`.

A process of its own for engines that want another environment than those of the tests (compiled, without our plugin).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.starcoder.models import Answer, greedy, started


def in_its_own_process(folder: Path, engine: dict[str, Any], **environment: str) -> list[Answer]:
    """Raises CalledProcessError, whose `stderr` says why, where the engine does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.starcoder.answers", str(folder), json.dumps(engine)],
        capture_output=True, text=True, check=True, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    return [Answer(tuple(answer["ids"]), tuple(answer["logprobs"])) for answer in found]


async def _answers(folder: Path, engine: dict[str, Any]) -> list[Answer]:
    """`asked` in the settings names the adapter; whose class built the model matters only without ANY_CLASS."""
    asked = engine.pop("asked", None)
    async with started(folder, **engine, any_class="STARSERVE_TEST_ANY_CLASS" in os.environ) as built:
        return await greedy(built, adapter=asked)


if __name__ == "__main__":
    print(json.dumps([asdict(answer) for answer in asyncio.run(_answers(Path(sys.argv[1]), json.loads(sys.argv[2])))]))
