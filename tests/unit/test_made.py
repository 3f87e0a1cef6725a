"""What an engine made is counted on disk; one without room harms neither the engine nor, in the end, the count."""

from __future__ import annotations

from pathlib import Path

from serve.made import Made, read_made
from tests.support.full_disk import full_disk


def test_a_full_disk_stops_no_engine_and_with_room_again_nothing_is_missing(tmp_path: Path) -> None:
    now_s, told = [0.0], list[str]()
    with full_disk(8):
        made = Made(tmp_path / "made", "engine-0", told.append, lambda: now_s[0])
        for _ in range(100):
            made.add(3)
            now_s[0] += 1
        assert read_made(tmp_path / "made") == {}
    assert len(told) == 1
    assert "cannot be counted on disk (File too large)" in told[0]
    now_s[0] += 10
    made.add(0)
    assert read_made(tmp_path / "made")["engine-0"].output_tokens == 300
    made.add(5)
    assert read_made(tmp_path / "made")["engine-0"].output_tokens == 305
    assert told[1:] == ["what this engine makes is counted on disk again; nothing is missing"]
