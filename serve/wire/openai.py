"""Events to OpenAI's objects. Nothing else knows their shapes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from serve.settings import Model
from serve.words import Ask, Event, Usage

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """Renders one answer, whole or in chunks, under one id. Instruct answers have the completion's shape."""

    ask: Ask
    reply_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, event: Event) -> Json:
        assert event.usage is not None
        choice: Json = {"index": event.choice, "finish_reason": event.finish, "logprobs": None}
        if self.ask.form == "chat":
            choice["message"] = {"role": "assistant", "content": event.text, "refusal": None}
        else:
            choice["text"] = event.text
        return {**self._head(chunk=False), "choices": [self._with_ids(choice, event)], "usage": usage(event.usage)}

    def first(self) -> Json | None:
        """The chunk before all text: chat announces the role."""
        if self.ask.form != "chat":
            return None
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def chunk(self, event: Event) -> Json:
        choice: Json = {"index": event.choice, "logprobs": None, "finish_reason": event.finish}
        if self.ask.form == "chat":
            choice["delta"] = {"content": event.text} if event.text else {}
        else:
            choice["text"] = event.text
        return self._chunk([self._with_ids(choice, event)])

    def last(self, counted: Usage) -> Json | None:
        return {**self._head(chunk=True), "choices": [], "usage": usage(counted)} if self.ask.include_usage else None

    def _chunk(self, choices: list[Json]) -> Json:
        return {**self._head(chunk=True), "choices": choices, **({"usage": None} if self.ask.include_usage else {})}

    def _head(self, chunk: bool) -> Json:
        kind = "text_completion" if self.ask.form != "chat" else f"chat.completion{'.chunk' if chunk else ''}"
        return {"id": self.reply_id, "object": kind, "created": self.created, "model": self.ask.model}

    def _with_ids(self, choice: Json, event: Event) -> Json:
        return {**choice, "token_ids": list(event.token_ids)} if self.ask.return_token_ids else choice


def usage(counted: Usage) -> Json:
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
    }


def model_card(model: Model, created: int) -> Json:
    return {
        "id": model.name, "object": "model", "created": created, "owned_by": "starserve",
        "max_model_len": model.context_tokens, "licence": model.licence,
        "templates": {"chat": model.templates.chat, "instruct": model.templates.instruct, "completions": "raw"},
    }  # fmt: skip
