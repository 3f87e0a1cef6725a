"""Request bodies: bytes to `Ask`, within the caps. Errors name the field, never its value: it may be a prompt.

A null in an optional field is the same as its absence; a null in a required one is an error.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError

from serve import schemas
from serve.errors import BadRequest, UnknownField
from serve.settings import Caps, did_you_mean
from serve.wire.bodies import BODIES, ChatBody, ChatMessage, CompletionBody, InstructBody, ResponseFormat, Sampled
from serve.wire.fields import HARMLESS, REFUSED
from serve.words import Ask, Form, Message, Sampling


def parse(form: Form, raw: bytes, caps: Caps) -> Ask:
    """Raises BadRequest or UnknownField that names the field."""
    body = _validated(form, _json(raw))
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options is only allowed when stream is true", "stream_options")
    options = body.stream_options
    common: dict[str, Any] = {
        "form": form, "model": body.model, "sampling": _sampling(body, caps), "stream": bool(body.stream),
        "include_usage": bool(options and options.include_usage),
        "continuous_usage": bool(options and options.continuous_usage_stats),
        "return_token_ids": bool(body.return_token_ids),
    }  # fmt: skip
    if isinstance(body, InstructBody):
        return Ask(**common, instruction=body.instruction, input=body.input or "")
    if isinstance(body, CompletionBody):
        return Ask(**common, prompts=_prompts(body, caps), echo=bool(body.echo))
    assert isinstance(body, ChatBody)
    return Ask(**common, messages=tuple(_message(m) for m in body.messages), tools_ignored=_tools_ignored(body))


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


def _validated(form: Form, body: dict[str, Any]) -> Sampled:
    shape = BODIES[form]
    for name, value in body.items():
        if name in REFUSED and value is not None:
            raise UnknownField(f"{name}: {REFUSED[name]}", name)
    try:
        return shape.model_validate(_without_nulls(shape, body))
    except ValidationError as e:
        # An unknown field is the most telling mistake; of a union's arms, the one that came furthest.
        errors = sorted(e.errors(), key=lambda x: (x["type"] != "extra_forbidden", -len(_path(x["loc"]))))
        error = errors[0]
    where = _path(error["loc"])
    if error["type"] == "extra_forbidden":
        known = [*shape.model_fields, *HARMLESS] if len(error["loc"]) == 1 else []
        raise UnknownField(f"unknown field {where[:100]}{did_you_mean(where, known)}", where[:100])
    if error["type"] == "missing":
        raise BadRequest(f"{where} is required", where)
    raise BadRequest(f"{where[:100]}: {error['msg'][:1].lower()}{error['msg'][1:]}", where[:100])


def _without_nulls(shape: type[BaseModel], body: dict[str, Any]) -> dict[str, Any]:
    """Drop what is null or harmless. Clients send back whole message objects, with nulls in fields unknown here."""
    optional = {name for name, field in shape.model_fields.items() if not field.is_required()} | REFUSED.keys()
    given = {k: v for k, v in body.items() if k not in HARMLESS and not (v is None and k in optional)}
    if isinstance(messages := given.get("messages"), list):
        needed = ("role", "content")
        given["messages"] = [
            {k: v for k, v in m.items() if v is not None or k in needed} if isinstance(m, dict) else m for m in messages
        ]
    return given


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content`; pydantic's own words for the arms of a union are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part not in ("str", "int") and not part.startswith(("list[", "dict[")):
            path += f".{part}" if path else part
    return path


def _sampling(body: Sampled, caps: Caps) -> Sampling:
    echo = isinstance(body, CompletionBody) and bool(body.echo)
    logprobs = _logprobs(body, caps, echo)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    _at_most(len(stop), caps.stops, "stop", "strings")
    if any(not s or len(s) > caps.stop_characters for s in stop):
        raise BadRequest(f"stop: each string has 1 to {caps.stop_characters} characters", "stop")
    _at_most(len(body.stop_token_ids or ()), caps.stop_token_ids, "stop_token_ids", "tokens")
    _at_most(body.n or 1, caps.choices, "n", "answers")
    most = _max_tokens(body, echo)
    if most is not None and (body.min_tokens or 0) > most:
        raise BadRequest(f"min_tokens is {body.min_tokens}, more than max_tokens ({most})", "min_tokens")
    if isinstance(body, CompletionBody) and body.best_of not in (None, body.n or 1):
        raise BadRequest("best_of is only served when it equals n", "best_of")
    return Sampling(
        most, body.temperature, body.top_p, body.n or 1, body.seed, stop, tuple(body.stop_token_ids or ()),
        bool(body.ignore_eos), body.min_tokens or 0, max(0, body.top_k or 0), body.min_p or 0.0,
        body.presence_penalty or 0.0, body.frequency_penalty or 0.0,
        1.0 if body.repetition_penalty is None else body.repetition_penalty,
        _logit_bias(body.logit_bias or {}, caps), body.skip_special_tokens is not False,
        logprobs=logprobs, prompt_logprobs=logprobs if echo else None, json_schema=_json_schema(body, caps),
    )  # fmt: skip


def _at_most(given: int, cap: int, name: str, unit: str) -> None:
    if given > cap:
        raise BadRequest(f"{name}: at most {cap} {unit}, not {given}", name)


def _max_tokens(body: Sampled, echo: bool) -> int | None:
    newer = body.max_completion_tokens if isinstance(body, ChatBody) else None
    if newer is not None and body.max_tokens not in (None, newer):
        raise BadRequest("max_tokens and max_completion_tokens differ; send one", "max_completion_tokens")
    if body.max_tokens == 0 and not echo:
        raise BadRequest("max_tokens: must be at least 1 (0 is for scoring a prompt, with echo)", "max_tokens")
    return body.max_tokens if newer is None else newer


def _logprobs(body: Sampled, caps: Caps, echo: bool) -> int | None:
    if isinstance(body, ChatBody):
        if body.top_logprobs and not body.logprobs:
            raise BadRequest("top_logprobs is only allowed when logprobs is true", "top_logprobs")
        _at_most(body.top_logprobs or 0, caps.logprobs, "top_logprobs", "alternatives")
        return body.top_logprobs or 0 if body.logprobs else None
    assert isinstance(body, CompletionBody | InstructBody)
    cap = caps.echo_logprobs if echo else caps.logprobs
    _at_most(body.logprobs or 0, cap, "logprobs", "alternatives" + (" with echo" if echo else ""))
    return body.logprobs


def _logit_bias(given: dict[str, float], caps: Caps) -> tuple[tuple[int, float], ...]:
    _at_most(len(given), caps.logit_bias, "logit_bias", "tokens")
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in given):
        raise BadRequest("logit_bias: each key is a token id in digits", "logit_bias")
    if any(abs(bias) > 100 for bias in given.values()):
        raise BadRequest("logit_bias: each value lies in -100…100", "logit_bias")
    return tuple((int(key), bias) for key, bias in given.items())


def _json_schema(body: Sampled, caps: Caps) -> str | None:
    wanted: ResponseFormat | None = getattr(body, "response_format", None)
    if wanted is None or wanted.type == "text":
        return None
    for name in ("ignore_eos", "min_tokens"):
        if getattr(body, name):
            raise BadRequest(f"{name}: not with response_format; such an answer ends where its JSON ends", name)
    if wanted.type == "json_object":
        return schemas.ANY_OBJECT
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise BadRequest("response_format.json_schema.schema is required for json_schema", "response_format")
    return schemas.checked(wanted.json_schema.json_schema, caps)


def _prompts(body: CompletionBody, caps: Caps) -> tuple[str | tuple[int, ...], ...]:
    if body.suffix:
        raise BadRequest("suffix: fill-in-the-middle is not served yet; only null or empty", "suffix")
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if given and isinstance(given[0], int):
        given = [given]
    _at_most(len(given), caps.prompts, "prompt", "prompts")
    if not given or not all(given):
        raise BadRequest("prompt is empty", "prompt")
    return tuple(p if isinstance(p, str) else tuple(p) for p in given)


def _message(message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    return Message(role, content if isinstance(content, str) else "".join(part.text for part in content))


def _tools_ignored(body: ChatBody) -> bool:
    """Editors and agents offer tools with every request; none is ever called, and whoever insists is refused."""
    if body.tool_choice not in (None, "auto", "none"):
        raise BadRequest("tool_choice: this server calls no tools; only auto or none", "tool_choice")
    return bool(body.tools)
