"""What is told of a measurement that failed in its own process."""

from __future__ import annotations

import pytest

from serve.bench.child import findings


def test_the_reason_is_told_and_not_what_a_library_says_after_it() -> None:
    lines = findings("tests.support.failing_child", {}, "the engine")
    assert next(lines) == [1]
    with pytest.raises(RuntimeError, match=r"^the engine: ValueError: line-1: prompt has 4 tokens$"):
        next(lines)


def test_last_words_are_told_where_there_is_no_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"^the engine: .*No module named tests\.support\.nowhere"):
        next(findings("tests.support.nowhere", {}, "the engine"))
