"""What is asked: real prompts, shapes, files in OpenAI's batch format; bad lines are named and stop nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serve.bench.questions import QuestionsError, questions


def written(folder: Path, *rows: Any) -> str:
    file = folder / "asked.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(file)


def test_humaneval_is_the_164_tasks() -> None:
    found = questions("humaneval", 500)
    assert len({q.question_id for q in found}) == 164
    assert "def has_close_elements(" in found[0].body["prompt"]


def test_an_edit_asks_for_the_code_that_it_shows() -> None:
    first = questions("editing", 500)[0]
    assert (first.form, first.body["temperature"]) == ("instruct", 0)
    assert "def has_close_elements(" in first.body["input"]
    assert "return" in first.body["input"]


def test_a_shape_is_random_tokens_of_the_vocabulary_and_the_same_each_time() -> None:
    found = questions("16/4x3", 50)
    assert [len(q.body["prompt"]) for q in found] == [16, 16, 16]
    assert all(0 < i < 50 for q in found for i in q.body["prompt"])
    assert found == questions("16/4x3", 50)
    assert found[0].body["prompt"] != found[1].body["prompt"]


def test_a_file_holds_bodies_or_lines_of_openais_batch_format(tmp_path: Path) -> None:
    batch = {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions",
             "body": {"model": "other", "messages": [{"role": "user", "content": "x"}]}}  # fmt: skip
    asked = questions(written(tmp_path, {"prompt": "def"}, batch, {"instruction": "Sort.", "custom_id": "c"}), 500)
    assert [(q.question_id, q.form) for q in asked] == [("line-1", "completion"), ("b", "chat"), ("c", "instruct")]
    assert asked[1].body == {"messages": [{"role": "user", "content": "x"}]}
    assert asked[2].body == {"instruction": "Sort."}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1: not valid JSON"),
        ("[1]", "line 1: not a JSON object"),
        ({"text": "x"}, "line 1: has none of instruction, messages, prompt"),
        ({"body": 3}, "line 1: body is not a JSON object"),
        ({"url": "/v1/embeddings", "body": {}}, "line 1: url is none of"),
    ],
)
def test_a_bad_line_is_a_question_with_a_problem(tmp_path: Path, line: Any, problem: str) -> None:
    bad, good = questions(written(tmp_path, line, {"prompt": "def"}), 500)
    assert (bad.problem or "").startswith(problem)
    assert good.problem is None


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": "a", "custom_id": "x"}, {"prompt": "b", "custom_id": "x"}], "custom_id x stands twice"),
        ([], "the file holds no line"),
    ],
)
def test_a_file_that_cannot_be_answered_row_by_row_is_refused(tmp_path: Path, rows: list[Any], sentence: str) -> None:
    with pytest.raises(QuestionsError, match=sentence):
        questions(written(tmp_path, *rows), 500)


@pytest.mark.parametrize("source", ["nowhere.jsonl", "0/4x1", "16x4"])
def test_a_source_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(QuestionsError, match=source):
        questions(source, 500)
