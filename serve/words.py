"""The words of starserve: what a tenant, a question, a job and an event are. Standard library only.

Secrets and prompts carry `repr=False` or a masked `repr`: they cannot be printed by accident.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Form = Literal["instruct", "completion", "chat", "fim"]
FimOrder = Literal["psm", "spm"]
Finish = Literal["stop", "length"]
Band = Literal["interactive", "standard", "batch"]  # classes of priority, strict from left to right
BANDS: tuple[Band, ...] = ("interactive", "standard", "batch")
Scope = Literal["generate", "usage"]  # what a key opens: the generating routes, its tenant's own usage
Level = Literal["key", "tenant", "organisation"]


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
class Limits:
    """How much one key, tenant or organisation may use. None is no limit; 0 is nothing at all."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and output together
    concurrent_requests: int | None = None
    queued_tokens: int | None = None  # prompt and expected output of requests that have no token yet
    tokens_per_day: int | None = None  # of UTC
    budget_per_month: int | None = None  # of UTC, in millionths of the deployment's currency


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most that one request of a tenant may ask for; None leaves the server's own."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    choices: int | None = None  # over all its prompts


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks. It comes from the API key alone; no header can change it."""

    tenant_id: str
    key_id: str
    cache_salt: Secret = field(repr=False)  # HMAC of the tenant id: tenants never share prefix-cache blocks
    organisation_id: str = ""
    weight: float = 1.0  # of its fair share: twice the weight, twice the tokens
    band: Band = "standard"
    models: frozenset[str] | None = None  # names, of adapters too, that this key may use; None is all
    scopes: frozenset[Scope] = frozenset[Scope](("generate", "usage"))
    ceilings: Ceilings = Ceilings()
    limits: tuple[tuple[Level, str, Limits], ...] = ()  # of its key, its tenant, its organisation; each with its id


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the engine may vary. The names and neutral values are OpenAI's and vLLM's.

    In an `Ask`, `max_tokens`, `temperature` and `top_p` may be None: the model's defaults, and whatever fits (16 on
    raw completions). In a `Job` nothing is open. With `max_tokens` 0 the prompt is scored and nothing is made.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    skip_special_tokens: bool = True
    logprobs: int | None = None  # likeliest alternatives told per token; None: no log-probabilities at all
    prompt_logprobs: int | None = None  # the same for the prompt's own tokens
    json_schema: str | None = field(default=None, repr=False)  # the answer is JSON that obeys it


@dataclass(frozen=True, slots=True)
class Infill:
    """Code before and after the cursor, and what is known of the file. `order`: prefix or suffix first."""

    prefix: str = field(repr=False)
    suffix: str = field(repr=False)
    order: FimOrder = "psm"
    head: str = field(default="", repr=False)  # what an editor put before the first marker
    repository: str = field(default="", repr=False)
    path: str = field(default="", repr=False)
    stars: int | None = None


class Segment(NamedTuple):
    """A piece of a rendered prompt. `control`: the name of one control token; otherwise encoded as plain text.

    `cut`: the end at which a text may be cut when the prompt is too long; "" is none.
    """

    text: str
    control: bool = False
    cut: Literal["", "start", "end"] = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt. `add_bos`: let the tokenizer put its own begin token first, as it does for plain text."""

    segments: tuple[Segment, ...] = field(repr=False)
    stops: tuple[str, ...] = ()
    add_bos: bool = True
    stop_tokens: tuple[str, ...] = ()  # names of control tokens that end the answer


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a client, parsed and within the caps; nothing behind the wire checks its shape again."""

    form: Form
    model: str
    sampling: Sampling
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    echo: bool = False  # completion: the prompt comes before the answer
    prompts: tuple[str | tuple[int, ...], ...] = field(default=(), repr=False)  # completion
    infills: tuple[Infill, ...] = field(default=(), repr=False)  # completion with suffix, fim: instead of prompts
    truncate: bool = False  # completion, fim: cut what is before and after the cursor until max_tokens fit
    as_much_as_fits: bool = False  # completion: no max_tokens means all the room, not OpenAI's 16
    instruction: str = field(default="", repr=False)  # instruct
    input: str = field(default="", repr=False)  # instruct
    messages: tuple[Message, ...] = field(default=(), repr=False)  # chat
    profile: str | None = None  # name of the model's sampling for what is not given
    given: frozenset[str] = frozenset()  # names of the sampling fields that the client sent
    tools_ignored: bool = False  # chat: tools were offered; this server never calls one
    body_bytes: int = 0  # of what the client sent


class Share(NamedTuple):
    """Whose share of an engine a job takes. `weight`: twice the weight, twice the tokens."""

    tenant_id: str = ""
    weight: float = 1.0
    band: Band = "standard"


@dataclass(frozen=True, slots=True)
class Job:
    """What one engine is asked to do: token ids in, how to sample, and whose turn it takes."""

    job_id: str
    prompt_ids: tuple[int, ...] = field(repr=False)
    sampling: Sampling
    cache_salt: Secret = field(repr=False)
    traceparent: str | None = None  # W3C trace context of the request
    adapter: str | None = None  # name of a LoRA adapter of the engine's model
    share: Share = field(default=Share())
    waited_s: float = 0.0  # in lines of replicas that gave it back
    toward: str | None = None  # the replica that had room for it then


class TokenLogprob(NamedTuple):
    """A token's log-probability (natural logarithm, of the model's raw distribution) and its likeliest rivals.

    `logprob` is None for a prompt's first token, which nothing predicts. `top` is sorted, likeliest first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Start(NamedTuple):
    """What the first event of a job tells besides its tokens."""

    prompt_tokens: int
    cached_tokens: int
    queue_s: float  # from the engine's door to its first step for this job
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    engine: str = ""  # the replica


class Usage(NamedTuple):
    """Tokens of a job; the prompt counts once, however many choices. `cached_tokens` are among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def after(self, event: Event) -> Usage:
        """With what another event of the same job tells."""
        prompt, made, cached = self
        if event.start:
            prompt, cached = event.start.prompt_tokens, event.start.cached_tokens
        return Usage(prompt, made + len(event.token_ids), cached)

    @classmethod
    def total(cls, parts: Iterable[Usage]) -> Usage:
        """The sum of several jobs."""
        return cls(*(sum(counts) for counts in zip(NO_USAGE, *parts, strict=True)))


NO_USAGE = Usage(0, 0, 0)


class Counted(NamedTuple):
    """What an engine read, found cached and made for one job. `finished`: it will not grow any more.

    A prompt that the engine has not read is no token, whether it waits, was refused or was given up.
    """

    usage: Usage
    finished: bool


class Event(NamedTuple):
    """A piece of an answer. Token ids, text and logprobs are what is new since the last event of the same choice.

    The text may trail the token ids (a character of several tokens, a possible stop string); joined, both are
    whole. Each choice has exactly one event with `finish`. The first event of a job, and only that, has `start`;
    the last, and only that, has `usage`.
    A NamedTuple, because it crosses a process once per token and pickles as a plain tuple.
    """

    choice: int
    token_ids: tuple[int, ...]
    text: str
    finish: Finish | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    start: Start | None = None
    ended_by: str | None = None  # with `finish`: what ended it, if neither the model nor max_tokens

    def __repr__(self) -> str:
        return f"Event(choice={self.choice}, tokens={len(self.token_ids)}, finish={self.finish})"
