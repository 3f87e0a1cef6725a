"""The line of a request, in both styles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve.logs import REQUESTS, logger, request_lines, sentences
from serve.record import Record
from tests.support.full_disk import full_disk
from tests.support.stack import wait_for


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


def test_a_full_disk_raises_nothing_and_the_lines_come_when_there_is_room(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard error is a file here, as it is in a replica."""
    with full_disk(at_bytes=0):
        for style in ("json", "text"):
            logger(style)(a_record())
        assert sentences().waiting == 2
    wait_for(lambda: sentences().waiting == 0)
    as_json, as_text = capfd.readouterr().err.split("\n", 1)
    assert json.loads(as_json)["request_id"] == "cmpl-1"
    assert " request cmpl-1 done " in as_text


def test_requests_have_a_file_of_their_own_of_json_and_nothing_else(tmp_path: Path) -> None:
    lines = request_lines(tmp_path, "json", most=10)
    logger("json", lines.write)(a_record())
    with full_disk(at_bytes=0):
        for _ in range(11):
            logger("json", lines.write)(a_record())
    wait_for(lambda: lines.counts().waiting == 0)
    logger("json", lines.write)(a_record())
    told = [json.loads(line) for line in (tmp_path / REQUESTS).read_text().splitlines()]
    events = [line["event"] for line in told]
    assert events.count("request") == 12
    assert [line["lines"] for line in told if line["event"] == "lines_lost"] == [1]
