"""`starserve bench limits`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_limits_are_measured_in_memory_and_on_a_redis_of_its_own(tmp_path: Path) -> None:
    kept = tmp_path / "limits.json"
    asked = ["--tenants", "10,500", "--requests", "200", "--rounds", "1", "--save", str(kept)]
    done = subprocess.run(
        [sys.executable, "-m", "serve", "bench", "limits", *asked], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(kept.read_text())
    assert [costs["store"] for costs in found] == ["identify", "memory", "Redis"]
    assert [costs["passed"] for costs in found] == [None, 1, 1]
    for costs in found:
        assert 100 < costs["bytes_per_tenant"] < 10_000
        (few, _), (many, _) = costs["requests"]["10"], costs["requests"]["500"]
        assert many < 5 * few
