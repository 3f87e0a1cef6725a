"""The shapes of request bodies. An allow-list: a field that is not here, nor in fields.py, is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from serve.words import FimOrder, Form

T = TypeVar("T")
Several = Annotated[list[T], Field(fail_fast=True)]  # one mistake is told; a list of many would take seconds, and a GiB
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
AtLeastOne = Annotated[int, Field(ge=1, lt=1 << 31)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
_LOWEST, _HIGHEST = -(1 << 63), 1 << 63


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    include_usage: bool | None = Field(None, description="One more chunk, with the token counts, before [DONE].")
    continuous_usage_stats: bool | None = Field(None, description="The token counts so far in every chunk.")
    include_obfuscation: bool | None = Field(None, description="Accepted and not used: no chunk is padded.")


class Sampled(_Body):
    """What every form takes."""

    model: str = Field(description="A name from GET /v1/models.")
    profile: str | None = Field(None, max_length=64, description="A name of the model's sampling; GET /v1/models/{id}.")
    max_tokens: Count | None = Field(None, description="Most tokens of each answer; 0 only with echo.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling.")
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="Only the k likeliest tokens; 0 or -1: all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Only tokens this likely, relative to the likeliest.")
    n: AtLeastOne | None = Field(None, description="Answers per prompt.")
    seed: int | None = Field(None, ge=_LOWEST, lt=_HIGHEST, description="Repeats a sampled answer.")
    stop: str | Several[str] | None = Field(None, description="Strings that end the answer; they are not part of it.")
    stop_token_ids: Several[TokenId] | None = Field(None, description="Tokens that end the answer.")
    ignore_eos: bool | None = Field(None, description="Go on after the model's end token.")
    min_tokens: Count | None = Field(None, description="No end token before so many tokens.")
    presence_penalty: Penalty | None = Field(None, description="Against tokens that the answer already has.")
    frequency_penalty: Penalty | None = Field(None, description="The same, by how often it has them.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, description="Above 1: against all tokens so far.")
    logit_bias: dict[str, float] | None = Field(None, description="Token id to -100…100, added to its logit.")
    skip_special_tokens: bool | None = Field(None, description="Leave control tokens out of the text (default).")
    stream: bool | None = Field(None, description="Answer in server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    return_token_ids: bool | None = Field(None, description="Add `token_ids` to each choice.")


class JsonSchema(_Body):
    name: str = Field(max_length=64, description="For the client; not used.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="What the answer obeys.")
    description: str | None = None
    strict: bool | None = Field(None, description="The schema is always obeyed.")


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class InstructBody(Sampled):
    """The native Alpaca form of the flagship's training."""

    instruction: str = Field(min_length=1, description="What to do.")
    input: str | None = Field(None, description="What to do it with; absent or empty picks the form without input.")
    logprobs: Count | None = Field(None, description="Log-probabilities, with so many alternatives per token.")
    response_format: ResponseFormat | None = Field(None, description="Text, any JSON object, or JSON of a schema.")


class FimOptions(_Body):
    """Of code around a cursor; ours."""

    order: FimOrder | None = Field(None, description="psm: prefix first (default); spm: suffix first.")
    repository: str | None = Field(None, max_length=256, description="Its name, as the model saw in training.")
    path: str | None = Field(None, max_length=1024, description="Of the file, in the repository.")
    stars: Count | None = Field(None, description="Of the repository; more stars, tidier code.")


class OllamaOptions(_Body):
    """Twinny's `openai-compatible` provider sends its sampling so."""

    num_predict: int | None = Field(None, ge=-2, lt=1 << 31, description="max_tokens; negative: all that fit.")
    temperature: float | None = Field(None, ge=0, le=2)
    stop: Several[str] | None = None


class CompletionBody(Sampled):
    """Raw: no template."""

    prompt: str | Several[str] | Several[TokenId] | Several[Several[TokenId]] = Field(
        description="One text or one list of token ids, or a list of either."
    )
    echo: bool | None = Field(None, description="Put the prompt before the answer; with logprobs, score it.")
    logprobs: Count | None = Field(None, description="Log-probabilities, with so many alternatives per token.")
    best_of: AtLeastOne | None = Field(None, description="Only the same number as n.")
    suffix: str | None = Field(None, description="Code after the cursor: the answer fills in what is between.")
    fim: FimOptions | None = Field(None, description="More about code around a cursor; only with suffix.")
    truncate: bool | None = Field(None, description="Cut texts that are too long, farthest from the cursor first.")
    options: OllamaOptions | None = Field(None, description="Ollama's place for sampling; Twinny sends it.")


class FimBody(Sampled):
    """Code around a cursor, as Mistral's API takes it: Continue and Tabby send this."""

    prompt: str = Field(description="Code before the cursor.")
    suffix: str | None = Field(None, description="Code after the cursor.")
    fim: FimOptions | None = Field(None, description="More about the file.")
    truncate: bool | None = Field(None, description="Cut texts that are too long, farthest from the cursor first.")
    random_seed: int | None = Field(None, ge=0, lt=1 << 64, description="Mistral's name of seed.")
    max_completion_tokens: AtLeastOne | None = Field(None, description="OpenAI's newer name of max_tokens.")


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Several[TextPart]
    name: str | None = Field(None, description="Accepted and not used.")


class ChatBody(Sampled):
    """OpenAI's chat, through the model's template."""

    messages: Several[ChatMessage] = Field(min_length=1)
    max_completion_tokens: AtLeastOne | None = Field(None, description="OpenAI's newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: Count | None = Field(None, description="With so many alternatives per token.")
    response_format: ResponseFormat | None = Field(None, description="Text, any JSON object, or JSON of a schema.")
    tools: Several[dict[str, Any]] | None = Field(None, description="Accepted and never called; a header says so.")
    tool_choice: str | dict[str, Any] | None = Field(None, description="auto or none.")
    modalities: Several[Literal["text"]] | None = Field(None, description="Text is all there is.")


BODIES: Mapping[Form, type[Sampled]] = {
    "instruct": InstructBody, "completion": CompletionBody, "chat": ChatBody, "fim": FimBody,
}  # fmt: skip
