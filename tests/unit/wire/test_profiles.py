"""What a model's configuration says to its users: sampling by name, and its licence."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.door import FORMS, SETTINGS, Door

PROFILES = {
    "complete": {"temperature": 0.25, "top_p": 0.5, "top_k": 3, "max_tokens": 60, "stop": ["\n\n"]},
    "long": {"max_tokens": 10_000},
}
LICENCE = {"licence": "Some RAIL", "licence_url": "https://example.org/licence", "licence_summary": "Be kind."}


@pytest.fixture
async def door(words_folder: Path, tmp_path: Path) -> AsyncIterator[Door]:
    folder = Path(shutil.copytree(words_folder, tmp_path / "model"))
    (folder / "LICENSE").write_text("The whole licence.")
    (folder / "README.md").write_text("# The model card")
    model: dict[str, Any] = {**SETTINGS["models"][0], **LICENCE, "profiles": PROFILES}
    opened = Door(folder, {"models": [model]})
    async with opened.client:
        yield opened


@pytest.mark.parametrize("path", FORMS)
async def test_a_profile_gives_what_the_request_does_not(door: Door, path: str) -> None:
    answer = await door.client.post(path, json={"model": "tiny", **FORMS[path], "profile": "complete", "top_p": 0.75})
    assert answer.status_code == 200
    reached = door.engine.jobs[-1].sampling
    assert (reached.temperature, reached.top_p, reached.top_k, reached.max_tokens) == (0.25, 0.75, 3, 60)
    assert reached.stop[0] == "\n\n"


async def test_an_explicit_neutral_value_wins_over_a_profile(door: Door) -> None:
    await door.post("/v1/completions", profile="complete", temperature=0, top_k=0, stop=["x"], max_tokens=5)
    reached = door.engine.jobs[-1].sampling
    assert (reached.temperature, reached.top_k, reached.stop, reached.max_tokens) == (0, 0, ("x",), 5)


async def test_a_profile_takes_what_room_there_is_but_a_client_is_told(door: Door) -> None:
    body = {"model": "tiny", **FORMS["/v1/completions"]}
    await door.client.post("/v1/completions", json={**body, "profile": "long"})
    job = door.engine.jobs[-1]
    assert job.sampling.max_tokens == 512 - len(job.prompt_ids)
    refused = await door.client.post("/v1/completions", json={**body, "max_tokens": 10_000})
    assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_an_unknown_profile_is_refused_with_the_known_ones(door: Door) -> None:
    error = (await door.post("/v1/chat/completions", profile="chatt")).json()["error"]
    assert error["param"] == "profile"
    assert "it has complete, long" in error["message"]


async def test_a_model_tells_its_licence_its_card_and_its_profiles(door: Door) -> None:
    card = (await door.client.get("/v1/models/tiny")).json()
    assert card["licence_details"] == {
        "id": "Some RAIL", "url": "https://example.org/licence", "summary": "Be kind.",
        "text": "The whole licence.", "model_card": "# The model card",
    }  # fmt: skip
    assert card["profiles"]["complete"]["max_tokens"] == 60


async def test_the_docs_link_the_licence_of_each_model(door: Door) -> None:
    head = (await door.client.get("/openapi.json")).json()["info"]["description"]
    assert "[Some RAIL](https://example.org/licence). Be kind." in head
    assert "(v1/models/tiny)" in head


async def test_switches_that_guessing_would_ignore_are_refused(words_folder: Path, tmp_path: Path) -> None:
    model: dict[str, Any] = {**SETTINGS["models"][0], "engine": {"device": "cpu", "ngram_tokens": 4}}
    guessing = Door(words_folder, {"models": [model]})
    for switch in ({"min_p": 0.1}, {"logit_bias": {"5": 1}}):
        answer = await guessing.post("/v1/completions", **switch)
        assert (answer.status_code, [answer.json()["error"]["param"]]) == (400, list(switch))
    assert (await guessing.post("/v1/completions", top_p=0.5, min_p=0)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_every_answer_says_that_a_machine_made_it(door: Door, stream: bool) -> None:
    for path in FORMS:
        answer = await door.post(path, stream=stream)
        assert answer.headers["x-machine-generated"] == "true"
    assert "x-machine-generated" not in (await door.client.get("/v1/models")).headers
