"""Fill-in-the-middle through the public door: what editors send reaches the engine as the model was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from serve.tokens import Vocabulary
from serve.words import Rendered, Segment
from tests.support.door import SETTINGS, Door, chunks
from tests.support.editors import AFTER, BEFORE, EDITORS, PSM, SPM
from tests.support.tiny_starcoder import CONTROL

PREFIX, MIDDLE, SUFFIX = (CONTROL.index(f"<fim_{part}>") for part in ("prefix", "middle", "suffix"))
REPONAME, FILENAME, STARS = (CONTROL.index(f"<{name}>") for name in ("reponame", "filename", "gh_stars"))


@pytest.fixture(scope="module")
def vocabulary(words_folder: Path) -> Vocabulary:
    return Vocabulary(words_folder)


def text(vocabulary: Vocabulary, *pieces: str | int) -> tuple[int, ...]:
    """Token ids of texts, with control tokens given as ids between them."""
    ids: list[int] = []
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else vocabulary.encode(Rendered((Segment(piece),)))
    return tuple(ids)


def psm(vocabulary: Vocabulary, before: str = BEFORE, after: str = AFTER) -> tuple[int, ...]:
    return text(vocabulary, PREFIX, before, SUFFIX, after, MIDDLE)


def respelled(words_folder: Path, folder: Path, spelling: str) -> Path:
    """The same vocabulary with other names for `<fim_…`."""
    folder.mkdir()
    for file in words_folder.iterdir():
        (folder / file.name).write_text(file.read_text().replace("<fim_", spelling))
    return folder


@pytest.mark.parametrize("name", EDITORS)
async def test_what_an_editor_sends_reaches_the_engine_as_the_model_was_trained(
    door: Door, vocabulary: Vocabulary, name: str
) -> None:
    path, body = EDITORS[name]
    answer = await door.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    job = door.engine.jobs[-1]
    assert job.prompt_ids == psm(vocabulary)
    assert {PREFIX, SUFFIX, MIDDLE, FILENAME, 0} <= set(job.sampling.stop_token_ids)
    options = body.get("options", {})
    assert job.sampling.max_tokens == body.get("max_tokens", options.get("num_predict"))
    assert job.sampling.temperature == body.get("temperature", options.get("temperature"))


async def test_the_sdk_fills_in_the_middle(door: Door, vocabulary: Vocabulary) -> None:
    http_client: Any = door.client  # the SDK's httpx2 is httpx under another name
    sdk = openai.AsyncOpenAI(base_url="http://test/v1", api_key=door.key, http_client=http_client)
    answer = await sdk.completions.create(model="tiny", prompt=BEFORE, suffix=AFTER, max_tokens=8)
    assert answer.choices[0].finish_reason == "length"
    assert door.engine.jobs[-1].prompt_ids == psm(vocabulary)


async def test_suffix_first_is_one_field_away(door: Door, vocabulary: Vocabulary) -> None:
    wanted = text(vocabulary, PREFIX, SUFFIX, AFTER, MIDDLE, BEFORE)
    await door.post("/v1/completions", prompt=BEFORE, suffix=AFTER, fim={"order": "spm"})
    await door.post("/v1/completions", prompt=SPM)
    assert [job.prompt_ids for job in door.engine.jobs] == [wanted, wanted]


async def test_the_repository_stands_before_the_file(door: Door, vocabulary: Vocabulary) -> None:
    wanted = text(vocabulary, REPONAME, "me/it", FILENAME, "a.py", STARS, "10-100", "\n", *psm(vocabulary))
    told = {"repository": "me/it", "path": "a.py", "stars": 42}
    await door.post("/v1/completions", prompt=BEFORE, suffix=AFTER, fim=told)
    await door.post("/v1/completions", prompt=f"<reponame>me/it<filename>a.py<gh_stars>10-100\n{PSM}")
    assert [job.prompt_ids for job in door.engine.jobs] == [wanted, wanted]


async def test_a_head_that_the_vocabulary_lacks_is_text(door: Door, vocabulary: Vocabulary) -> None:
    """Twinny writes StarCoder2's heads for every StarCoder."""
    head = "<repo_name>it\n<file_sep>b.py\nx = 1\n<file_sep>a.py\n"
    await door.post("/v1/completions", prompt=head + PSM)
    assert door.engine.jobs[-1].prompt_ids == text(vocabulary, head, *psm(vocabulary))


@pytest.mark.parametrize(
    "prompt",
    [
        f'MARKS = "{PSM}"',  # in a string of a file
        f'MARKS = "{PSM}',  # the cursor right behind the last marker, and something before the first
        f"{PSM}{PSM}",
        "<fim_prefix>a<fim_middle>b<fim_suffix>",
        "<fim_prefix>a<fim_suffix>b",
        "<|endoftext|>",
        "<fim_prefix><fim_suffix>x<fim_middle>a<fim_middle>",  # two readings
    ],
)
async def test_markers_that_do_not_read_in_exactly_one_way_are_text(
    door: Door, vocabulary: Vocabulary, prompt: str
) -> None:
    await door.post("/v1/completions", prompt=prompt)
    job = door.engine.jobs[-1]
    assert job.prompt_ids == text(vocabulary, prompt)
    assert not {PREFIX, MIDDLE, SUFFIX, 0} & set(job.prompt_ids)


@pytest.mark.parametrize("field", ["prompt", "suffix"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/fim/completions"])
async def test_markers_typed_into_the_code_around_the_cursor_are_text(door: Door, path: str, field: str) -> None:
    code = {"prompt": BEFORE, "suffix": AFTER, field: f"MARKS = '{PSM}<|endoftext|>'"}
    await door.post(path, **code)
    ids = door.engine.jobs[-1].prompt_ids
    assert [ids.count(marker) for marker in (PREFIX, SUFFIX, MIDDLE, 0)] == [1, 1, 1, 0]


async def test_markers_typed_into_a_rendered_prefix_are_text(door: Door, vocabulary: Vocabulary) -> None:
    before = "MARKS = '<fim_prefix> <fim_middle>'\n"
    await door.post("/v1/completions", prompt=PSM.replace(BEFORE, before))
    assert door.engine.jobs[-1].prompt_ids == psm(vocabulary, before)


async def test_an_operator_may_forbid_or_allow_control_tokens_in_raw_prompts(
    words_folder: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    for policy, wanted in (
        ("text", text(vocabulary, PSM + "<|endoftext|>")),
        ("all", (*psm(vocabulary), 0)),
    ):
        model: dict[str, Any] = {**SETTINGS["models"][0], "control_tokens": policy}
        door = Door(words_folder, {"models": [model]})
        await door.post("/v1/completions", prompt=PSM + "<|endoftext|>")
        assert door.engine.jobs[-1].prompt_ids == wanted


@pytest.mark.parametrize(("lines_before", "lines_after"), [(400, 400), (400, 1), (1, 400)])
async def test_truncate_keeps_the_answer_and_what_is_nearest_to_the_cursor(
    door: Door, vocabulary: Vocabulary, lines_before: int, lines_after: int
) -> None:
    before, after = ("".join(f"x{i} = {i}\n" for i in range(n)) for n in (lines_before, lines_after))
    refused = await door.post("/v1/completions", prompt=before, suffix=after, max_tokens=100)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    await door.post("/v1/completions", prompt=before, suffix=after, max_tokens=100, truncate=True)
    ids = door.engine.jobs[-1].prompt_ids
    assert len(ids) == 512 - 100
    whole_before, whole_after = text(vocabulary, before), text(vocabulary, after)
    kept_before, kept_after = ids[1 : ids.index(SUFFIX)], ids[ids.index(SUFFIX) + 1 : -1]
    assert kept_before == whole_before[len(whole_before) - len(kept_before) :]
    assert kept_after == whole_after[: len(kept_after)]
    room = 512 - 100 - 3
    wanted = {(400, 400): room // 4, (400, 1): len(whole_after), (1, 400): room - len(whole_before)}
    assert len(kept_after) == wanted[lines_before, lines_after]


async def test_truncate_cuts_the_start_of_a_raw_prompt(door: Door, vocabulary: Vocabulary) -> None:
    prompt = "".join(f"x{i} = {i}\n" for i in range(400))
    await door.post("/v1/completions", prompt=prompt, max_tokens=100, truncate=True)
    assert door.engine.jobs[-1].prompt_ids == text(vocabulary, prompt)[-412:]


async def test_a_model_without_the_tokens_says_so(words_folder: Path, tmp_path: Path) -> None:
    door = Door(respelled(words_folder, tmp_path / "plain", "<other_"))
    for path in ("/v1/completions", "/v1/fim/completions"):
        answer = await door.post(path, prompt=BEFORE, suffix=AFTER)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "suffix")
        assert "fill-in-the-middle" in answer.json()["error"]["message"]
    assert (await door.post("/v1/completions", prompt=BEFORE, suffix="")).status_code == 200


async def test_santacoder_spells_its_markers_with_hyphens(
    words_folder: Path, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    door = Door(respelled(words_folder, tmp_path / "santa", "<fim-"))
    await door.post("/v1/completions", prompt=PSM.replace("<fim_", "<fim-"))
    await door.post("/v1/completions", prompt=BEFORE, suffix=AFTER)
    assert [job.prompt_ids for job in door.engine.jobs] == [psm(vocabulary)] * 2


async def test_each_chunk_of_mistrals_form_has_content(door: Door) -> None:
    answer = await door.post("/v1/fim/completions", stream=True)
    found = chunks(answer)
    assert all(isinstance(chunk["choices"][0]["delta"]["content"], str) for chunk in found)
    assert found[-1]["choices"][0]["finish_reason"] == "length"


async def test_the_model_may_stand_in_the_path_but_not_differ(door: Door) -> None:
    answer = await door.client.post("/v1/engines/tiny/completions", json={"prompt": "x", "model": "other"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    missing = await door.client.post("/v1/engines/nobody/completions", json={"prompt": "x"})
    assert missing.status_code == 404


async def test_ollamas_unlimited_answer_takes_the_room_that_is_left(door: Door) -> None:
    body = {"model": "tiny", "prompt": "x", "options": {"num_predict": -1}}
    await door.client.post("/v1/completions", json=body)
    job = door.engine.jobs[-1]
    assert job.sampling.max_tokens == 512 - len(job.prompt_ids)
