"""Which GPUs this process may use, and how much memory each has. NVIDIA's own tool tells; without it there are none."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import NamedTuple

_ASK = ("nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits")
_ANSWERS_WITHIN_S = 20.0


class Gpu(NamedTuple):
    """`memory_gib`: in all, used or free."""

    number: str
    uuid: str
    memory_gib: float


def visible(environment: Mapping[str, str]) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, or all."""
    try:
        done = subprocess.run(_ASK, env=dict(environment), capture_output=True, text=True, timeout=_ANSWERS_WITHIN_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [_gpu(line) for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return [gpu for gpu in found if any(name == gpu.number or gpu.uuid.startswith(name) for name in names)]


def _gpu(line: str) -> Gpu:
    """One without memory of its own, as on machines that share theirs, says `[N/A]`."""
    number, uuid, memory_mib = (part.strip() for part in line.split(","))
    return Gpu(number, uuid, float(memory_mib) / 1024 if memory_mib.isdecimal() else float("inf"))
