"""Answers that take long to write: log-probabilities of some thousand tokens are a million numbers.

They are rendered in a thread, and written piece by piece: the encoder of JSON holds the interpreter until it is done,
so that one call for all of it would stop the answers of other clients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from serve.wire.openai import Json, Reply
from serve.words import Event

MANY = 64  # tokens with log-probabilities in one event
_AT_ONCE = 64  # entries of a list that are encoded in one call


def is_large(event: Event) -> bool:
    return event.logprobs is not None and len(event.logprobs) > MANY


def whole(reply: Reply, events: Sequence[Event]) -> bytes:
    """The body of a unary answer. It blocks for as long as it takes."""
    return _written(reply.whole(events))


def chunk(reply: Reply, event: Event) -> bytes:
    """One chunk of a stream. It blocks for as long as it takes."""
    return b"data: " + _written(reply.chunk(event)) + b"\n\n"


def _written(body: Json) -> bytes:
    return "".join(_pieces(body)).encode()


def _pieces(value: Any) -> Iterator[str]:
    dump: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    if isinstance(value, dict):
        yield "{"
        for place, (name, inner) in enumerate(value.items()):
            yield f"{',' if place else ''}{dump(name)}:"
            yield from _pieces(inner)
        yield "}"
    elif isinstance(value, list) and len(value) > _AT_ONCE:
        yield "["
        for begin in range(0, len(value), _AT_ONCE):
            yield f"{',' if begin else ''}{dump(value[begin : begin + _AT_ONCE])[1:-1]}"
        yield "]"
    elif isinstance(value, list):
        yield "["
        for place, inner in enumerate(value):
            yield "," if place else ""
            yield from _pieces(inner)
        yield "]"
    else:
        yield dump(value)
