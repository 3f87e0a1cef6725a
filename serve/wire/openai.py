"""Events to OpenAI's objects. Nothing else knows their shapes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.model_settings import Model
from serve.wire.logprobs import Spell, of_chat, of_completion
from serve.words import Ask, Event, Usage

Json = dict[str, Any]


@dataclass(slots=True)
class Reply:
    """Renders one answer, whole or in chunks, under one id. Instruct answers have the completion's shape."""

    ask: Ask
    reply_id: str
    spell: Spell = field(repr=False)
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))  # characters, per choice
    _so_far: Usage = field(default_factory=lambda: Usage(0, 0, 0))

    @property
    def _chats(self) -> bool:
        """Whether the answer has the shape of a chat's; Mistral's fill-in-the-middle has, OpenAI's has not."""
        return self.ask.form in ("chat", "fim")

    def whole(self, events: Sequence[Event]) -> Json:
        """`events`: one per choice, the last with the usage."""
        counted = events[-1].usage
        assert counted is not None
        choices = []
        for event in events:
            choice: Json = {"index": event.choice, "finish_reason": event.finish, "logprobs": self._logprobs(event)}
            if self._chats:
                choice["message"] = {"role": "assistant", "content": event.text, "refusal": None}
            else:
                choice["text"] = event.text
            choices.append(self._with_ids(choice, event))
        return {**self._head(chunk=False), "choices": choices, "usage": usage(counted)}

    def first(self) -> list[Json]:
        """The chunks before all text: chat announces the role of each choice."""
        if not self._chats:
            return []
        delta = {"role": "assistant", "content": ""}
        indices = range(self.ask.sampling.n)
        return [self._chunk([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}]) for i in indices]

    def chunk(self, event: Event) -> Json:
        self._count(event)
        choice: Json = {"index": event.choice, "logprobs": self._logprobs(event), "finish_reason": event.finish}
        if self._chats:
            # Tabby's reader of Mistral's form wants the content in each chunk.
            choice["delta"] = {"content": event.text} if event.text or self.ask.form == "fim" else {}
        else:
            choice["text"] = event.text
        return self._chunk([self._with_ids(choice, event)])

    def last(self, counted: Usage) -> Json | None:
        return {**self._head(chunk=True), "choices": [], "usage": usage(counted)} if self.ask.include_usage else None

    def _logprobs(self, event: Event) -> Json | None:
        if event.logprobs is None:
            return None
        if self._chats:
            return of_chat(event.logprobs, self.spell)
        shape, self._offsets[event.choice] = of_completion(event.logprobs, self.spell, self._offsets[event.choice])
        return shape

    def _count(self, event: Event) -> None:
        prompt, made, cached = self._so_far
        if event.start:
            prompt, cached = prompt + event.start.prompt_tokens, cached + event.start.cached_tokens
        self._so_far = Usage(prompt, made + len(event.token_ids), cached)

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = {**self._head(chunk=True), "choices": choices}
        if self.ask.continuous_usage:
            chunk["usage"] = usage(self._so_far)
        elif self.ask.include_usage:
            chunk["usage"] = None
        return chunk

    def _head(self, chunk: bool) -> Json:
        kind = "text_completion" if not self._chats else f"chat.completion{'.chunk' if chunk else ''}"
        return {"id": self.reply_id, "object": kind, "created": self.created, "model": self.ask.model}

    def _with_ids(self, choice: Json, event: Event) -> Json:
        if event.ended_by is not None:
            choice = {**choice, "stop_reason": event.ended_by}  # vLLM's name for what ended an answer
        return {**choice, "token_ids": list(event.token_ids)} if self.ask.return_token_ids else choice


def usage(counted: Usage) -> Json:
    return {
        "prompt_tokens": counted.prompt_tokens,
        "completion_tokens": counted.completion_tokens,
        "total_tokens": counted.prompt_tokens + counted.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counted.cached_tokens},
    }


def licence_of(model: Model, folder: Path) -> Json:
    """What a prepared model says of itself: its licence and its card, as they came with the weights."""
    texts = {"text": "LICENSE", "model_card": "README.md"}
    found = {key: _text(folder / name) for key, name in texts.items()}
    return {"id": model.licence, "url": model.licence_url, "summary": model.licence_summary, **found}


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def model_card(model: Model, created: int, adapter: str | None = None) -> Json:
    return {
        "id": adapter or model.name, "parent": model.name if adapter else None,
        "object": "model", "created": created, "owned_by": "starserve",
        "max_model_len": model.context_tokens, "licence": model.licence, "licence_url": model.licence_url,
        "profiles": {name: profile.model_dump(exclude_none=True) for name, profile in model.profiles.items()},
        "templates": {"chat": model.templates.chat, "instruct": model.templates.instruct, "completions": "raw"},
    }  # fmt: skip
