"""What tenants got, from samples whose truth is known."""

from __future__ import annotations

import pytest

from serve.bench.service import Window, at_work, least_waiting, output_tokens, service
from serve.bench.stream import Sample


def answer(sent_s: float, first_s: float | None, last_s: float | None, prompt: int = 10, output: int = 20) -> Sample:
    ended = last_s if last_s is not None else sent_s + 100
    return Sample(
        "t", sent_s, sent_s, first_s, last_s, ended, prompt_tokens=prompt, output_tokens=output, outcome="done"
    )


def test_service_counts_a_prompt_token_once_and_an_output_token_twice_within_the_window() -> None:
    whole = answer(0, 2, 6)
    assert service([whole], Window(0, 10)) == pytest.approx(10 + 2 * 20)
    assert service([whole], Window(4, 10)) == pytest.approx(25)  # its second half
    assert service([whole], Window(7, 10)) == 0
    assert output_tokens([whole], Window(3, 5)) == pytest.approx(10)
    assert service([answer(0, None, None), answer(0, 5, 5)], Window(0, 10)) == pytest.approx(50)


def test_waiting_is_told_by_the_emptiest_moment_of_each_second() -> None:
    asked = [answer(0, 2.0, 9), answer(0, 2.6, 9), answer(2.1, 5, 9), answer(0, None, None)]
    assert least_waiting(asked, Window(0, 6)) == [3, 3, 2, 2, 2, 1]


def test_answers_at_work_are_those_between_first_and_last_token() -> None:
    assert at_work([answer(0, 1, 3), answer(0, 2, 4)], Window(0, 5), every_s=1) == [0, 1, 2, 1, 0]
