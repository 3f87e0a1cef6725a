"""A log that cannot be written harms nobody, and gets its sentences when it can."""

from __future__ import annotations

from serve.telling import Teller


def test_what_a_log_did_not_take_is_told_later_in_its_order() -> None:
    told, full = list[str](), True

    def say(sentence: str) -> None:
        if full:
            raise OSError("no space left")
        told.append(sentence)

    tell = Teller(say)
    for number in range(100):
        tell(f"{number}")
    tell.again()
    full = False
    tell.again()
    tell("last")
    assert told == [*map(str, range(80, 100)), "last"]  # the oldest are given up
