"""What this machine can do: bytes read per second and multiplications per second, measured with torch.

`python -m serve.bench.machine cpu float32` prints both as JSON. A process of its own, so that
no memory stays taken.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from serve.plan import Machine

_READ_BYTES = {"cpu": 1 << 29, "cuda": 1 << 33}
_SQUARE = {"cpu": 2048, "cuda": 8192}
_RUNS = 7


def measured(device: str, dtype: str) -> Machine:
    """`device` is cpu or gpu, `dtype` torch's name. Raises CalledProcessError where torch cannot use the device."""
    command = [sys.executable, "-m", "serve.bench.machine", {"gpu": "cuda"}.get(device, device), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Machine(*json.loads(done.stdout.splitlines()[-1]))


def _measure(device: str, dtype: str) -> Machine:
    import torch

    kind: torch.dtype = getattr(torch, dtype)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(_RUNS):
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, dtype=kind, device=device)

    with torch.inference_mode():
        # Random numbers: on zeros a GPU draws less power and runs faster than it ever will on weights.
        # A decode step reads matrices and keeps vectors: so does this.
        width = 8192
        rows = _READ_BYTES[device] // width // kind.itemsize
        vector = torch.randn(width, dtype=kind, device=device)
        bandwidth = rows * width * kind.itemsize / seconds(partial(torch.mv, random(rows, width), vector))
        side = _SQUARE[device]
        square = random(side, side)
        flops = 2 * side**3 / seconds(lambda: square @ square)
    return Machine(bandwidth, flops)


if __name__ == "__main__":
    found = _measure(sys.argv[1], sys.argv[2])
    print(json.dumps([found.bandwidth_bytes_s, found.flops_s]))
