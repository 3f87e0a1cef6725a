"""The words of starserve: what a tenant, a question, a job and an event are. Standard library only.

Secrets and prompts carry `repr=False` or a masked `repr`: they cannot be printed by accident.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Form = Literal["instruct", "completion", "chat"]
Finish = Literal["stop", "length"]


class Secret(str):
    """A string that never shows itself: `repr`, `str` and formatting give a mask; `reveal` gives the text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def reveal(self) -> str:
        return "".join(self)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks. It comes from the API key alone; no header can change it."""

    tenant_id: str
    key_id: str
    cache_salt: Secret = field(repr=False)  # HMAC of the tenant id: tenants never share prefix-cache blocks


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the engine may vary. `max_tokens` None means: whatever fits (16 on raw completions)."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a client, parsed and within the caps; nothing behind the wire checks its shape again."""

    form: Form
    model: str
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    return_token_ids: bool = False
    prompt: str | tuple[int, ...] = field(default="", repr=False)  # completion
    instruction: str = field(default="", repr=False)  # instruct
    input: str = field(default="", repr=False)  # instruct
    messages: tuple[Message, ...] = field(default=(), repr=False)  # chat


@dataclass(frozen=True, slots=True)
class Job:
    """What one engine is asked to do: token ids in, and how to sample. No text, no identity but the salt."""

    job_id: str
    prompt_ids: tuple[int, ...] = field(repr=False)
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...] = field(repr=False)
    cache_salt: Secret = field(repr=False)


class Usage(NamedTuple):
    """Tokens of a finished job, as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Event(NamedTuple):
    """A piece of an answer. Token ids and text are what is new since the last event of the same choice.

    The text may trail the token ids (a character of several tokens, a possible stop string); joined, both are
    whole. The last event carries `finish` and `usage`, and there is exactly one such event.
    A NamedTuple, because it crosses a process once per token and pickles as a plain tuple.
    """

    choice: int
    token_ids: tuple[int, ...]
    text: str
    finish: Finish | None = None
    usage: Usage | None = None

    def __repr__(self) -> str:
        return f"Event(choice={self.choice}, tokens={len(self.token_ids)}, finish={self.finish})"
