"""What a client writes stays between it and the engine: a canary in each place, looked for in every other."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from serve.ledger.tables import metadata as LEDGER
from tests.support.door import FORMS
from tests.support.town import Town, head, raw

CANARY = "canary4711"
TEXT = f"{CANARY} and some words"
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": TEXT, "stop": [TEXT]}),
    ("/v1/completions", {"prompt": [TEXT, "x"], "echo": True, "logprobs": 2}),
    ("/v1/completions", {"prompt": TEXT, "suffix": TEXT, "fim": {"repository": CANARY, "path": CANARY}}),
    ("/v1/instruct", {"instruction": TEXT, "input": TEXT}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT, "name": CANARY}], "user": CANARY}),
    ("/v1/chat/completions", {"metadata": {CANARY: CANARY}, "tools": [{"type": CANARY}]}),
    ("/v1/fim/completions", {"prompt": TEXT, "suffix": TEXT}),
]  # fmt: skip
BAD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"model": CANARY}), ("/v1/completions", {"model": [CANARY]}),
    ("/v1/completions", {"profile": CANARY}), ("/v1/completions", {"prompt": {"a": TEXT}}),
    ("/v1/completions", {"prompt": [TEXT, 1]}), ("/v1/completions", {"prompt": TEXT * 400}),
    ("/v1/completions", {"temperature": TEXT}), ("/v1/completions", {"stop": [TEXT, 1]}),
    ("/v1/completions", {"stop": TEXT * 50}), ("/v1/completions", {"logit_bias": {CANARY: 1}}),
    ("/v1/completions", {"stream_options": TEXT}), ("/v1/completions", {"max_tokens": TEXT}),
    ("/v1/completions", {"guided_regex": TEXT}), ("/v1/completions", {"cache_salt": TEXT}),
    ("/v1/completions", {"priority": TEXT}), ("/v1/instruct", {"instruction": [TEXT]}),
    ("/v1/chat/completions", {"messages": TEXT}), ("/v1/chat/completions", {"messages": [TEXT]}),
    ("/v1/chat/completions", {"messages": [{"role": TEXT, "content": TEXT}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": [TEXT]}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": TEXT, "image_url": TEXT}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": TEXT}]}),
    ("/v1/chat/completions", {"tool_choice": TEXT}), ("/v1/chat/completions", {"response_format": {"type": TEXT}}),
    ("/v1/fim/completions", {"fim": {"order": TEXT}}),
]  # fmt: skip
RAW = [f'{{"model": "tiny", "prompt": "{TEXT}"', f'"{TEXT}"', f'["{TEXT}"]', f'{{"prompt": "{TEXT}\\ud800"}}',
       f'{{"model": "tiny", "prompt": "{TEXT}", "temperature": NaN}}', TEXT]  # fmt: skip


async def written(town: Town) -> str:
    """Everything that is on disk: rows of every table, journals, and the files themselves."""
    await town.ledger_rows()
    with town.database.connect() as connection:
        rows = [str(connection.execute(table.select()).all()) for table in LEDGER.sorted_tables]
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    files = await asyncio.to_thread(lambda: [p.read_bytes() for p in town.folder.rglob("*") if p.is_file()])
    return "".join(rows) + "".join(file.decode("latin-1") for file in files)


async def test_no_text_of_a_client_is_kept_logged_or_told_to_anybody_else(
    town: Town, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for path, changes in GOOD:
        for stream in (False, True):
            assert (await town.ask(town.mallory, path, stream=stream, **changes)).status_code == 200, changes
    answered = len(town.records)
    errors = ""
    for path, changes in BAD:
        refused = await town.ask(town.mallory, path, **changes)
        assert 400 <= refused.status_code < 500, changes
        errors += refused.text
    headers = {"Authorization": f"Bearer {town.mallory}"}
    for body in RAW:
        refused = await town.client.post("/v1/completions", content=body.encode(), headers=headers)
        assert refused.status_code == 400, body
        errors += refused.text
    town.engine.fail_after = 1
    errors += (await town.ask(town.mallory, prompt=TEXT, stream=True, stop=[TEXT])).text.split("data: ")[-1]
    town.engine.fail_after = None
    logged, kept = "".join(capfd.readouterr()) + caplog.text, await written(town)
    assert len(town.records) == len(GOOD) * 2 + len(BAD) + len(RAW) + 1
    assert logged.count("\n") >= 2 * len(town.records)
    for place in (errors, logged, kept, repr(town.records), repr(town.engine.jobs)):
        assert CANARY not in place, place[max(0, place.index(CANARY) - 200) :][:400]
    # What Prometheus would get as labels comes from closed sets: a name that is not served never becomes one.
    labels = {(r.model, r.tenant_id, r.form, r.outcome, r.code) for r in town.records}
    assert {model for model, *_ in labels} == {"tiny", None}
    assert {model for model, *_ in labels if model} == {"tiny"}
    assert all(r.model == "tiny" for r in town.records[:answered])


async def test_no_secret_is_kept_logged_or_told(
    town: Town, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    told = ""
    wrong = f"sk-{town.key_ids['alice']}_{'s' * 40}{CANARY}"
    for key in (town.mallory, wrong, f"sk-{CANARY}_{'s' * 64}", CANARY):
        for path in ("/v1/models", "/v1/usage", f"/v1/models/{CANARY}"):
            told += (await town.get(path, key, ("X-Api-Key", CANARY), ("Cookie", f"a={CANARY}"))).text
        told += (await town.ask(key)).text
    await town.ask(town.mallory, max_tokens=10**6)
    secret = town.mallory.split("_", 1)[1]
    logged = "".join(capfd.readouterr()) + "".join(r.getMessage() for r in caplog.records if r.name.startswith("serve"))
    for place in (told, logged, await written(town), repr(town.records), repr(town.engine.jobs), repr(town.tenants)):
        for hidden in (CANARY, secret, "p" * 64, *(j.cache_salt.reveal() for j in town.engine.jobs)):
            assert hidden not in place
    assert secret not in str(town.rows)


GIVEN = [(f"{CANARY}-1", True), (f"a {CANARY}", False), (f"{CANARY}\x85x", False), ("é" + CANARY, False),
         (CANARY * 20, False), (f'"{CANARY}"}}', True), ("\x1b[31m" + CANARY, False)]  # fmt: skip


async def test_a_request_id_is_the_clients_own_and_cannot_forge_a_line(
    town: Town, capfd: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"model": "tiny", **FORMS["/v1/completions"], "max_tokens": 1}).encode()
    known = [("Authorization", f"Bearer {town.mallory}"), ("Content-Length", str(len(body)))]
    async with town.listening() as port:
        for given, kept in GIVEN:
            answer = await raw(port, head("/v1/completions", [*known, ("X-Request-Id", given)], "POST"), body)
            lines = capfd.readouterr().err.splitlines()
            if answer.status == 400:  # the HTTP server itself takes no control characters
                assert not lines
                continue
            assert answer.status == 200
            assert (answer.headers["x-request-id"] == given) is kept
            (as_json,) = [json.loads(line) for line in lines if line.startswith("{")]
            assert as_json["outcome"] == "done"
            assert (as_json["client_request_id"] == given) is kept
            assert (CANARY in "".join(lines)) is kept
    assert CANARY not in await written(town)


async def test_a_failure_nobody_foresaw_tells_its_class_alone(
    town: Town, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(job: Any) -> Any:
        raise KeyError(TEXT)

    town.receipts.generate = broken  # type: ignore[method-assign]
    answer = await town.ask(town.mallory, prompt=TEXT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert town.records[-1].error == "KeyError"
    assert CANARY not in answer.text + "".join(capfd.readouterr()) + await written(town)
    assert set((await town.sizes()).values()) == {0}
