"""What counts as an answer: nothing but a whole one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serve.bench.stream import Reading, Sample

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def chunk(text: str = "", finish: str | None = None, **others: Any) -> bytes:
    return data({"choices": [{"index": 0, "text": text, "finish_reason": finish}], **others})


def data(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
WHOLE = [chunk("a"), b": waiting\n\n", chunk("b"), chunk("c", "stop"), data({"choices": [], "usage": USAGE}), DONE]


def read(pieces: list[bytes], choices: int = 1) -> Sample:
    """Each piece comes 0.1 s after the one before; the request was due at 9 and sent at 9.5."""
    sample = Sample("t", intended_s=9.0, sent_s=9.5)
    reading = Reading(sample, choices)
    for place, piece in enumerate(pieces):
        reading.feed(piece, 10 + place / 10)
    return reading.close(20.0)


def test_a_whole_answer_is_done_and_counted_by_its_usage() -> None:
    sample = read(WHOLE)
    assert (sample.outcome, sample.prompt_tokens, sample.output_tokens, sample.cached_tokens) == ("done", 7, 3, 2)
    assert sample.ttft_s == pytest.approx(1.0)
    assert sample.service_ttft_s == pytest.approx(0.5)
    assert sample.tpot_s == pytest.approx(0.15)
    assert sample.gaps_s == pytest.approx([0.2, 0.1])
    assert (sample.e2e_s, sample.lag_s) == (11.0, 0.5)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_bytes_may_be_cut_anywhere(size: int) -> None:
    stream = b"".join(WHOLE)
    sample = read([stream[i : i + size] for i in range(0, len(stream), size)])
    assert (sample.outcome, sample.output_tokens, sample.chunks) == ("done", 3, 3)


def test_lines_may_end_as_windows_ends_them() -> None:
    assert read([piece.replace(b"\n", b"\r\n") for piece in WHOLE]).outcome == "done"


@pytest.mark.parametrize("missing", [3, 4, 5])
def test_without_finish_reason_usage_or_done_an_answer_is_truncated(missing: int) -> None:
    assert read([piece for place, piece in enumerate(WHOLE) if place != missing]).outcome == "truncated"


def test_a_stream_that_stops_is_truncated_however_many_tokens_came() -> None:
    assert read(WHOLE[:2] * 50).outcome == "truncated"


def test_an_error_in_band_is_an_error_even_when_done_follows() -> None:
    sample = read([*WHOLE[:2], data({"error": {"message": "m", "code": "engine_lost"}}), DONE])
    assert (sample.outcome, sample.code) == ("error", "engine_lost")


def test_what_is_no_json_is_unreadable() -> None:
    assert read([*WHOLE, b"data: {oops\n\n"]).outcome == "unreadable"


def test_every_choice_must_finish() -> None:
    assert read(WHOLE, choices=2).outcome == "truncated"


def test_a_role_is_no_token() -> None:
    role = data({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    content = data({"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]})
    sample = read([role, content, data({"choices": [], "usage": USAGE}), DONE])
    assert (sample.outcome, sample.chunks) == ("done", 1)
    assert sample.ttft_s == pytest.approx(1.1)


def test_a_refusal_keeps_its_status_and_code() -> None:
    sample = Sample("t", 0.0, status=429)
    reading = Reading(sample)
    reading.refused(429, json.dumps({"error": {"code": "rate_limited"}}).encode())
    assert (reading.close(1.0).outcome, sample.code) == ("refused", "rate_limited")
