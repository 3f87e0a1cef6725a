"""The end of the shared stack, after everything that its tests did to it."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.stack import Stack


def test_stop_leaves_no_process_no_port_and_no_shared_memory(stack: Stack) -> None:
    processes = stack.below()
    assert [p for p in processes if p.status() == psutil.STATUS_ZOMBIE] == []
    mapped = {m.path for p in processes for m in p.memory_maps() if m.path.startswith("/dev/shm/")}
    assert mapped
    assert stack.stop() < 15
    assert stack.process.returncode == 0
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert [path for path in mapped if Path(path).exists()] == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stack.address}/health/live")
