"""Fill-in-the-middle through the whole way, real at every step: what editors send, and what the model made of it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.editors import AFTER, BEFORE, EDITORS
from tests.support.starcoder.models import by_hugging_face, ids_of
from tests.support.tiny_starcoder import CONTROL

PREFIX, MIDDLE, SUFFIX = (CONTROL.index(f"<fim_{part}>") for part in ("prefix", "middle", "suffix"))

ENDS = [i for i, name in enumerate(CONTROL) if name.startswith(("<|end", "<fim", "<reponame", "<filename", "<gh_st"))]


pytestmark = pytest.mark.parametrize("variant", ["haproxy"], indirect=True)


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_the_middle_is_that_of_hugging_face_on_the_ids_of_training(
    client: httpx.Client, starcoder_folder: Path, order: str
) -> None:
    body = {"model": "tiny", "prompt": BEFORE, "suffix": AFTER, "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    asked = {**body, "fim": {"order": order}, "return_token_ids": True}
    choice = client.post("/v1/completions", json=asked).json()["choices"][0]
    before, after = ids_of(starcoder_folder, BEFORE), ids_of(starcoder_folder, AFTER)
    psm = [PREFIX, *before, SUFFIX, *after, MIDDLE]
    spm = [PREFIX, SUFFIX, *after, MIDDLE, *before]
    (wanted,) = by_hugging_face(starcoder_folder, [psm if order == "psm" else spm])
    ends = [place for place, i in enumerate(wanted.ids) if i in ENDS]
    made = wanted.ids[: ends[0] + 1] if ends else wanted.ids
    assert choice["token_ids"] == list(made)
    assert choice["finish_reason"] == ("stop" if ends else "length")
    assert not any(name in choice["text"] for name in CONTROL)


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_is_answered_without_markers(client: httpx.Client, name: str) -> None:
    path, body = EDITORS[name]
    answer = client.post(path, json=body)
    assert answer.status_code == 200
    assert "finish_reason" in answer.text
    assert not any(marker in answer.text for marker in CONTROL)
