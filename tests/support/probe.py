"""Asks a running stack's engines, from inside Ray: the sum over all replicas of a number, per line of input."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.stack import Stack


class Probe:
    """The asking process, connected once, so that an answer takes milliseconds."""

    def __init__(self, stack: Stack, models: Sequence[str]) -> None:
        environment = {
            **stack.environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(stack.folder / "ray.token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        (raylet,) = stack.named("raylet/raylet")
        address = next(a for a in raylet.cmdline() if a.startswith("--gcs-address=")).split("=")[1]
        self._process = subprocess.Popen(
            [sys.executable, __file__, address, *(f"engine-{model}" for model in models)],
            env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def running(self) -> int:
        """Requests in work and in line."""
        return self._ask("running")

    def output_tokens(self) -> int:
        """Tokens that the engines handed out."""
        return self._ask("output_tokens")

    def _ask(self, method: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(method, file=self._process.stdin, flush=True)
        while not (line := self._process.stdout.readline()).startswith("sum "):
            assert line, "the probe has ended"
        return int(line.split()[1])

    def __enter__(self) -> Probe:
        try:
            self.running()
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)


async def _sum(handles: Sequence[Any], method: str) -> int:
    """Asked again while a replica that died stands in Ray's list."""
    for left in reversed(range(30)):
        try:
            told = [await handle.broadcast(method).results_async(timeout_s=30) for handle in handles]
        except Exception:
            if not left:
                raise
            await asyncio.sleep(1)
        else:
            return sum(map(sum, told))
    raise AssertionError("unreachable")


async def main(address: str, *engines: str) -> None:
    import ray
    from ray import serve as ray_serve

    ray.init(address=address, log_to_driver=False, namespace="serve")
    handles = [ray_serve.get_deployment_handle(engine, app_name="tested") for engine in engines]
    while line := await asyncio.to_thread(sys.stdin.readline):
        print("sum", await _sum(handles, line.strip()), flush=True)
    os._exit(0)  # Ray's own farewell takes seconds


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
