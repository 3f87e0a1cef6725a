"""One streamed answer as its client saw it: bytes with their arrival in, what happened out. No sockets, no clock.

Whoever reads the bytes (asyncio or Locust) gives them to `Reading` with the time at which they came. Success is an
answer whose every choice has a finish reason, which told its usage, and which ended with `[DONE]`: a stream that is
cut, or that tells an error in band, is a failure, however many tokens came before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# cut: the run ended before the answer did
Outcome = Literal["done", "refused", "error", "truncated", "unreadable", "unreachable", "timeout", "cut"]


@dataclass(slots=True)
class Sample:
    """One request. All times in seconds on the caller's clock, `intended_s` being when it was due."""

    tenant: str
    intended_s: float
    sent_s: float = 0.0
    first_s: float | None = None  # the first chunk with text or token ids; a chunk with a role alone is none
    last_s: float | None = None  # the last such chunk
    ended_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0  # by `usage`, never by counting chunks
    chunks: int = 0
    messages: int = 0  # reads with tokens in them; a server may send several chunks at once
    gaps_s: list[float] = field(default_factory=list)  # between chunks; a chunk may hold several tokens
    outcome: Outcome = "truncated"
    status: int = 0
    code: str | None = None  # of the error

    @property
    def ttft_s(self) -> float | None:
        """From when it was due: what somebody in the queue of a slow server waits."""
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def service_ttft_s(self) -> float | None:
        """From when it was sent."""
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """vLLM's formula: (last - first) ÷ (output tokens - 1); None for fewer than two tokens."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        return self.ended_s - self.intended_s

    @property
    def lag_s(self) -> float:
        """How much later than due the client sent it."""
        return self.sent_s - self.intended_s


class Reading:
    """Reads one answer into its sample. `choices`: how many finish reasons make it whole."""

    def __init__(self, sample: Sample, choices: int = 1) -> None:
        self._sample, self._open, self._rest = sample, choices, b""
        self._usage = self._done = self._failed = False

    def feed(self, data: bytes, now_s: float) -> None:
        """Bytes of a stream, cut anywhere."""
        *events, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        before = self._sample.chunks
        for event in events:
            self._event(event, now_s)
        self._sample.messages += self._sample.chunks > before

    def refused(self, status: int, body: bytes) -> None:
        """An answer with another status than 200."""
        self._sample.outcome, self._failed = "refused", True
        self._sample.code = _code(_json(body)) or str(status)

    def failed(self, outcome: Outcome) -> None:
        """The connection's own failure."""
        if not self._whole:
            self._sample.outcome, self._failed = outcome, True

    def close(self, now_s: float) -> Sample:
        """The connection has ended."""
        self._sample.ended_s = now_s
        if not self._failed:
            self._sample.outcome = "done" if self._whole else "truncated"
        return self._sample

    @property
    def _whole(self) -> bool:
        return self._done and self._usage and self._open == 0

    def _event(self, event: bytes, now_s: float) -> None:
        lines = event.split(b"\n")
        data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
        if not data:  # a comment
            return
        if data == b"[DONE]":
            self._done = True
            return
        chunk = _json(data)
        if chunk is None:
            self._sample.outcome, self._failed = "unreadable", True
        elif "error" in chunk:
            self._sample.outcome, self._failed, self._sample.code = "error", True, _code(chunk)
        else:
            self._chunk(chunk, now_s)

    def _chunk(self, chunk: dict[str, Any], now_s: float) -> None:
        if isinstance(usage := chunk.get("usage"), dict):
            self._sample.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self._sample.output_tokens = int(usage.get("completion_tokens") or 0)
            self._sample.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            self._usage = True
        choices: Sequence[dict[str, Any]] = chunk.get("choices") or ()
        self._open -= sum(choice.get("finish_reason") is not None for choice in choices)
        if any(_holds_tokens(choice) for choice in choices):
            self._token_chunk(now_s)

    def _token_chunk(self, now_s: float) -> None:
        sample = self._sample
        if sample.last_s is None:
            sample.first_s = now_s
        else:
            sample.gaps_s.append(now_s - sample.last_s)
        sample.last_s, sample.chunks = now_s, sample.chunks + 1


def _holds_tokens(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or choice.get("token_ids") or delta.get("content") or delta.get("reasoning_content"))


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _code(body: dict[str, Any] | None) -> str | None:
    error = (body or {}).get("error")
    code = error.get("code") or error.get("type") if isinstance(error, dict) else None
    return str(code) if code is not None else None
