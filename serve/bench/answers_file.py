"""The answers to a whole dataset: a row per question in OpenAI's batch format, appended as they come.

What is written is kept: after a kill the next run drops half a last line, reads which questions have a row, and asks
the others. A second writer is refused, and so is another dataset or model than the one that the file was begun with.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class AnswersError(ValueError):
    """Why answers cannot be written to this file, in a sentence."""


class AnswersFile:
    """Open for one writer, as a context. `answered` holds the ids of questions that have a row."""

    def __init__(self, path: Path, made_from: Mapping[str, str]) -> None:
        """`made_from`: what must be the same when the work goes on, such as the sums of model and dataset."""
        self._path, self._made_from = path, dict(made_from)
        self.answered = set[str]()

    def __enter__(self) -> AnswersFile:
        self._file = self._path.open("a+b")
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        return self

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AnswersError(f"{self._path}: another run is writing to it") from None
        beside = self._path.with_name(self._path.name + ".job")
        if beside.exists():
            begun = json.loads(beside.read_text())
            if apart := [k for k, v in self._made_from.items() if begun.get(k) != v]:
                raise AnswersError(f"{self._path}: was begun with another {apart[0]}; name a new file")
        elif self._path.stat().st_size:
            raise AnswersError(f"{self._path}: holds something that this command did not write; name a new file")
        else:
            fresh = beside.with_name(beside.name + ".new")
            fresh.write_text(json.dumps(self._made_from))
            fresh.replace(beside)
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self.answered.add(json.loads(line)["custom_id"])
            whole += len(line)
        self._file.truncate(whole)

    def write(self, question_id: str, status: int, body: Mapping[str, Any], request_id: str) -> None:
        """One row, out of this process before the call returns."""
        response = {"status_code": status, "request_id": request_id, "body": body}
        row = {"id": request_id, "custom_id": question_id, "response": response, "error": None}
        os.write(self._file.fileno(), json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self.answered.add(question_id)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
