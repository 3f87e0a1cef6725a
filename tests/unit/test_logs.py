"""The line of a request, in both styles."""

from __future__ import annotations

import json

import pytest

from serve.logs import logger
from serve.words import Record


def a_record() -> Record:
    record = Record("cmpl-1", "completion", "theirs", tenant_id="acme", key_id="k1", model="tiny", stream=True)
    record.outcome, record.output_tokens, record.ttft_s = "done", 7, 0.25
    return record


def test_both_styles_tell_the_same_of_a_request(capfd: pytest.CaptureFixture[str]) -> None:
    logger("json")(a_record())
    as_json = json.loads(capfd.readouterr().err)
    logger("text")(a_record())
    (line,) = capfd.readouterr().err.splitlines()
    assert (as_json["event"], as_json["request_id"], as_json["outcome"]) == ("request", "cmpl-1", "done")
    _, event, request_id, outcome, *pairs = line.split()
    assert (event, request_id, outcome) == ("request", "cmpl-1", "done")
    as_text = dict(pair.split("=", 1) for pair in pairs)
    for name in ("tenant_id", "model", "output_tokens", "ttft_s", "stream"):
        assert as_text[name] == str(as_json[name])
