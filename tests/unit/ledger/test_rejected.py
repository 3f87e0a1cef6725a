"""Lines that no database takes, kept for a person."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve.ledger.journal import Line
from serve.ledger.rejected import Rejected
from tests.support.full_disk import full_disk


def kept(path: Path) -> list[int]:
    return [json.loads(line)[1]["number"] for line in path.read_text().splitlines()]


def line(number: int) -> Line:
    return Line("c", {"number": number, "why": "it is wrong"})


def test_a_group_that_is_tried_again_leaves_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "r.rejected"
    rejected = Rejected(path)
    rejected.keep(line(0))
    with full_disk(path.stat().st_size * 2 + 10):
        rejected.again()  # its group failed behind it
        rejected.keep(line(0))
        rejected.keep(line(1))
        for _ in range(3):
            with pytest.raises(OSError, match=r"File too large|No space"):
                rejected.keep(line(2))
            assert kept(path) == [0, 1]  # and no torn one
    rejected.again()
    for number in range(5):
        rejected.keep(line(number))
    assert kept(path) == [0, 1, 2, 3, 4]


def test_a_restart_repeats_no_line_and_a_torn_one_takes_none_along(tmp_path: Path) -> None:
    path = tmp_path / "r.rejected"
    for _ in range(3):
        rejected = Rejected(path)
        for number in range(1, 4):
            rejected.keep(line(number))
    path.write_bytes(path.read_bytes()[:-5])  # the last one was being written when the power went
    rejected = Rejected(path)
    for number in range(1, 6):
        rejected.keep(line(number))
    lines = path.read_text().splitlines()
    assert [json.loads(text)[1]["number"] for text in lines if text.endswith("]")] == [1, 2, 3, 4, 5]
    assert len(lines) == 6
