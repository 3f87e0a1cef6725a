"""The line of a request, in both styles."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from serve.logs import logger
from serve.words import Record


def a_record() -> Record:
    record = Record("cmpl-1", "completion", "theirs", tenant_id="acme", key_id="k1", model="tiny", stream=True)
    record.outcome, record.output_tokens, record.ttft_s = "done", 7, 0.25
    return record


def test_both_styles_tell_the_same_of_a_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {}
    for style in ("json", "text"):
        with (tmp_path / style).open("w") as file:
            monkeypatch.setattr(sys, "__stderr__", file)
            logger(style)(a_record())
            monkeypatch.undo()
        told[style] = (tmp_path / style).read_text()
    assert "\n" not in told["text"].rstrip("\n")
    as_json = json.loads(told["json"])
    assert (as_json["event"], as_json["request_id"], as_json["outcome"]) == ("request", "cmpl-1", "done")
    _, event, request_id, outcome, *pairs = told["text"].split()
    assert (event, request_id, outcome) == ("request", "cmpl-1", "done")
    as_text = dict(pair.split("=", 1) for pair in pairs)
    for name in ("tenant_id", "model", "output_tokens", "ttft_s", "stream"):
        assert as_text[name] == str(as_json[name])
