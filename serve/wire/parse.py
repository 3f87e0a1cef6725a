"""Request bodies: bytes to `Ask`, within the caps. Errors name the field, never its value: it may be a prompt.

A null in an optional field is the same as its absence; a null in a required one is an error.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from serve.errors import BadRequest, UnknownField
from serve.settings import Caps, did_you_mean
from serve.wire.bodies import (
    BODIES,
    ChatBody,
    ChatMessage,
    CompletionBody,
    FimBody,
    FimOptions,
    InstructBody,
    Sampled,
)
from serve.wire.counted import count
from serve.wire.fields import HARMLESS, REFUSED
from serve.wire.sampling import at_most, given_names, sampling, with_options
from serve.words import Ask, Form, Infill, Message


def parse(form: Form, raw: bytes, caps: Caps, model: str | None = None) -> Ask:
    """`model`: from the path, where that names it. Raises BadRequest or UnknownField that names the field."""
    given = _json(raw)
    if model is not None and given.setdefault("model", model) != model:
        raise BadRequest("model: differs from the one in the path", "model")
    body = _validated(form, given, caps)
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options is only allowed when stream is true", "stream_options")
    options, asked = body.stream_options, with_options(body)
    common: dict[str, Any] = {
        "form": form, "model": body.model, "sampling": sampling(asked, caps), "stream": bool(body.stream),
        "profile": body.profile, "given": given_names(asked),
        "include_usage": bool(options and options.include_usage),
        "continuous_usage": bool(options and options.continuous_usage_stats),
        "return_token_ids": bool(body.return_token_ids), "body_bytes": len(raw),
    }  # fmt: skip
    if isinstance(body, InstructBody):
        return Ask(**common, instruction=body.instruction, input=body.input or "")
    if isinstance(body, FimBody):
        return Ask(**common, infills=(_infill(body.prompt, body.suffix or "", body.fim),), truncate=bool(body.truncate))
    if isinstance(body, CompletionBody):
        return _completion(body, common, caps)
    assert isinstance(body, ChatBody)
    return Ask(**common, messages=tuple(_message(m) for m in body.messages), tools_ignored=_tools_ignored(body))


def _json(raw: bytes) -> dict[str, Any]:
    """Linear in time and memory, numbers of any length and objects of any number of names included."""
    try:
        # Some clients begin with a byte order mark, which RFC 8259 lets a reader skip.
        body = from_json(raw.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False, cache_strings="keys")
    except ValueError as e:
        raise BadRequest(_why_no_json(raw, str(e))) from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def _why_no_json(raw: bytes, reason: str) -> str:
    """The kind of mistake, and never the reader's own words: they may quote the body."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "the body is not valid UTF-8"
    if "recursion limit" in reason:
        return "the body is nested too deeply"
    if "surrogate" in reason or "end of hex escape" in reason:
        return "the body holds a lone surrogate, which is no text"
    if "number out of range" in reason:
        return "the body holds a number of too many digits"
    return "the body is not valid JSON"


def _validated(form: Form, body: dict[str, Any], caps: Caps) -> Sampled:
    shape = BODIES[form]
    for name, value in body.items():
        if name in REFUSED and value is not None:
            raise UnknownField(f"{name}: {REFUSED[name]}", name)
        if name not in shape.model_fields and name not in HARMLESS and name not in REFUSED:
            raise _unknown(name, [*shape.model_fields, *HARMLESS])
    count(body, caps)
    try:
        return shape.model_validate(_without_nulls(shape, body))
    except ValidationError as e:
        # An unknown field is the most telling mistake; of a union's arms, the one that came furthest.
        told = e.errors(include_url=False, include_context=False, include_input=False)
        error = min(told, key=lambda x: (x["type"] != "extra_forbidden", -len(_path(x["loc"]))))
    where = _path(error["loc"])
    if error["type"] == "extra_forbidden":
        raise _unknown(where)
    if error["type"] == "missing":
        raise BadRequest(f"{where} is required", where)
    raise BadRequest(f"{where[:100]}: {error['msg'][:1].lower()}{error['msg'][1:]}", where[:100])


def _unknown(where: str, known: Sequence[str] = ()) -> UnknownField:
    return UnknownField(f"unknown field {where[:100]}{did_you_mean(where, list(known))}", where[:100])


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


def _completion(body: CompletionBody, common: dict[str, Any], caps: Caps) -> Ask:
    unlimited = body.max_tokens is None and bool(body.options and (body.options.num_predict or 0) < 0)
    common |= {"echo": bool(body.echo), "truncate": bool(body.truncate), "as_much_as_fits": unlimited}
    prompts = _prompts(body, caps)
    texts = [p for p in prompts if isinstance(p, str)]
    if len(texts) < len(prompts) and (body.suffix or body.truncate):
        field = "suffix" if body.suffix else "truncate"
        raise BadRequest(f"{field}: prompt must be text, not token ids", field)
    if body.echo and (body.suffix or body.truncate):
        raise BadRequest("echo: not with suffix or truncate", "echo")
    if not body.suffix:
        if body.fim:
            raise BadRequest("fim: only with suffix", "fim")
        return Ask(**common, prompts=prompts)
    return Ask(**common, infills=tuple(_infill(text, body.suffix, body.fim) for text in texts))


def _prompts(body: CompletionBody, caps: Caps) -> tuple[str | tuple[int, ...], ...]:
    given: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if given and isinstance(given[0], int):
        given = [given]
    at_most(len(given), caps.prompts, "prompt", "prompts")
    # At the start of a file there is nothing before the cursor.
    if not given or not (all(given) or body.suffix):
        raise BadRequest("prompt is empty", "prompt")
    return tuple(p if isinstance(p, str) else tuple(p) for p in given)


def _infill(prefix: str, suffix: str, told: FimOptions | None) -> Infill:
    told = told or FimOptions()
    return Infill(
        prefix, suffix, told.order or "psm", repository=told.repository or "", path=told.path or "", stars=told.stars
    )


def _message(message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    content = message.content
    return Message(role, content if isinstance(content, str) else "".join(part.text for part in content))


def _tools_ignored(body: ChatBody) -> bool:
    """Editors and agents offer tools with every request; none is ever called, and whoever insists is refused."""
    if body.tool_choice not in (None, "auto", "none"):
        raise BadRequest("tool_choice: this server calls no tools; only auto or none", "tool_choice")
    return bool(body.tools)
