"""Request bodies: bytes to `Ask`. An allow-list; a field that is not listed is refused by name.

A null in an optional field is the same as its absence; a null in a required one is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.errors import BadRequest, UnknownField
from serve.settings import Caps, did_you_mean
from serve.words import Ask, Form, Message, Sampling

TokenId = Annotated[int, Field(ge=0)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    include_usage: bool = Field(False, description="Send one more chunk, with the token counts, before [DONE].")


class _Sampled(_Body):
    model: str = Field(description="A name from GET /v1/models.")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens of the answer.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling.")
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63, description="Repeats a sampled answer.")
    stop: str | list[str] | None = Field(None, description="Strings that end the answer; they are not part of it.")
    stream: bool | None = Field(None, description="Answer in server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    return_token_ids: bool | None = Field(None, description="Add `token_ids` to each choice.")


class InstructBody(_Sampled):
    """The native Alpaca form of the flagship's training."""

    instruction: str = Field(min_length=1, description="What to do.")
    input: str | None = Field(None, description="What to do it with; absent or empty picks the form without input.")


class CompletionBody(_Sampled):
    """Raw: no template."""

    prompt: str | list[TokenId] = Field(description="One text, or one list of token ids.")


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = Field(None, description="Accepted and not used.")


class ChatBody(_Sampled):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="OpenAI's newer name of max_tokens.")


BODIES: Mapping[Form, type[_Sampled]] = {"instruct": InstructBody, "completion": CompletionBody, "chat": ChatBody}


def parse(form: Form, raw: bytes, caps: Caps) -> Ask:
    """Raises BadRequest or UnknownField that names the field."""
    body = _validated(form, _json(raw))
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options is only allowed when stream is true", "stream_options")
    common: dict[str, Any] = {
        "form": form, "model": body.model, "sampling": _sampling(body, caps), "stream": bool(body.stream),
        "include_usage": bool(body.stream_options and body.stream_options.include_usage),
        "return_token_ids": bool(body.return_token_ids),
    }  # fmt: skip
    if isinstance(body, InstructBody):
        return Ask(**common, instruction=body.instruction, input=body.input or "")
    if isinstance(body, CompletionBody):
        if not body.prompt:
            raise BadRequest("prompt is empty", "prompt")
        return Ask(**common, prompt=body.prompt if isinstance(body.prompt, str) else tuple(body.prompt))
    assert isinstance(body, ChatBody)
    return Ask(**common, messages=tuple(_message(m) for m in body.messages))


def _json(raw: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise BadRequest(f"{constant} is not JSON: a number must be finite")

    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=refuse)
        # A lone surrogate (\ud800) is legal JSON and no text; found here, or deep in a tokenizer.
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("the body is not valid UTF-8") from None
    except UnicodeEncodeError:
        raise BadRequest("the body holds a lone surrogate, which is no text") from None
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError:
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def _validated(form: Form, body: dict[str, Any]) -> _Sampled:
    shape = BODIES[form]
    given = {k: v for k, v in body.items() if v is not None or k not in shape.model_fields or _required(shape, k)}
    try:
        return shape.model_validate(given)
    except ValidationError as e:
        # An unknown field is the most telling mistake; of a union's arms, the one that came furthest.
        errors = sorted(e.errors(), key=lambda x: (x["type"] != "extra_forbidden", -len(_path(x["loc"]))))
        error = errors[0]
    where = _path(error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(shape.model_fields) if len(error["loc"]) == 1 else []
        raise UnknownField(f"unknown field {where[:100]}{did_you_mean(where, known)}", where[:100])
    if error["type"] == "missing":
        raise BadRequest(f"{where} is required", where)
    # Only the kind of mistake is told, never the value: it may be a prompt.
    raise BadRequest(f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}", where)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`; pydantic's own words for the arms of a union are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", "int") and not part.startswith("list["):
            path += f".{part}" if path else part
    return path


def _required(shape: type[BaseModel], name: str) -> bool:
    return shape.model_fields[name].is_required()


def _sampling(body: _Sampled, caps: Caps) -> Sampling:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > caps.stops:
        raise BadRequest(f"stop: at most {caps.stops} strings, not {len(stop)}", "stop")
    if any(not s or len(s) > caps.stop_characters for s in stop):
        raise BadRequest(f"stop: each string has 1 to {caps.stop_characters} characters", "stop")
    newer = body.max_completion_tokens if isinstance(body, ChatBody) else None
    if newer is not None and body.max_tokens not in (None, newer):
        raise BadRequest("max_tokens and max_completion_tokens differ; send one", "max_completion_tokens")
    most = body.max_tokens if newer is None else newer
    return Sampling(most, body.temperature, body.top_p, body.seed, tuple(stop))


def _message(message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    return Message(role, content if isinstance(content, str) else "".join(part.text for part in content))
