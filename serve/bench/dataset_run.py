"""The process of `bench batch --answers` that holds the engine: asks what has no row yet, and says how far it is."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.answers import collect
from serve.bench.answers_file import AnswersError, AnswersFile
from serve.bench.local_model import LocalModel, local_model, tenant
from serve.bench.questions import Question
from serve.errors import BadRequest, EngineLost, EngineUnavailable, ServeError
from serve.record import Record
from serve.wire.openai import Reply
from serve.words import Tenant

TELL_EVERY_S = 5.0
ENGINE_STOPPED = "the engine stopped; run the same command again, it goes on where this one ended"


async def answer(task: Mapping[str, Any]) -> None:
    """Lines with `answered` and `output_tokens` so far; the last one has `done`."""
    asked = [Question(**q) for q in task["questions"]]
    with AnswersFile(Path(task["answers"]), task["made_from"]) as file:
        left = [q for q in asked if q.question_id not in file.answered]
        _say({"found": len(asked) - len(left), "left": len(left)})
        if left:
            async with local_model(task) as local:
                await _Work(local, file, int(task["at_once"])).all(left)
    _say({"done": len(asked)})


class _Work:
    def __init__(self, local: LocalModel, file: AnswersFile, at_once: int) -> None:
        self._local, self._file, self._places = local, file, asyncio.Semaphore(at_once)
        self._tokens, self._refused, self._told, self._began = 0, 0, 0.0, time.monotonic()
        self._tenant: Tenant = tenant()

    async def all(self, questions: list[Question]) -> None:
        # The first failure of the engine ends all; what has a row keeps it.
        async with asyncio.TaskGroup() as group:
            for question in questions:
                await self._places.acquire()
                group.create_task(self._one(question))
        self._tell(at_last=True)

    async def _one(self, question: Question) -> None:
        request_id = f"batch-{secrets.token_hex(12)}"
        try:
            status, body = 200, await self._answer(question, request_id)
        except (EngineLost, EngineUnavailable):
            raise
        except ServeError as e:
            status, body = e.status, e.body()
            self._refused += 1
        finally:
            self._places.release()
        self._file.write(question.question_id, status, body, request_id)
        self._tell()

    async def _answer(self, question: Question, request_id: str) -> dict[str, Any]:
        if question.problem:
            raise BadRequest(question.problem)
        ask = self._local.ask(question)
        record = Record(request_id, ask.form, request_id)
        events = await collect(self._local.corridor.answer(ask, self._tenant, record))
        self._tokens += record.output_tokens
        spell = self._local.corridor.served[ask.model].vocabulary.spell
        return Reply(ask, request_id, spell).whole(events)

    def _tell(self, at_last: bool = False) -> None:
        now = time.monotonic()
        if at_last or now - self._told > TELL_EVERY_S:
            self._told = now
            _say({"answered": len(self._file.answered), "refused": self._refused, "output_tokens": self._tokens,
                  "wall_s": now - self._began})  # fmt: skip


def _say(finding: Mapping[str, Any]) -> None:
    print(json.dumps(finding), flush=True)


def _reason(failed: ExceptionGroup[Exception]) -> str:
    """A sentence for what is foreseen; what is not is raised."""
    foreseen, others = failed.split((AnswersError, EngineLost, EngineUnavailable))
    if others is not None:
        raise others
    assert foreseen is not None
    first = next(e for e in foreseen.exceptions)
    return str(first) if isinstance(first, AnswersError) else ENGINE_STOPPED


if __name__ == "__main__":
    try:
        asyncio.run(answer(json.load(sys.stdin)))
    except* Exception as failed:
        sys.exit(_reason(failed))
