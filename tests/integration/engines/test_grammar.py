"""The grammar compiler behind structured output, without a model: whatever it lets through obeys the schema."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from serve.schemas import checked
from serve.settings import Caps
from tests.support.schemas import GOOD

WALKS, LONGEST = 40, 500
MORE: dict[str, dict[str, Any]] = {
    "a bound beside null": {"type": ["integer", "null"], "minimum": 3, "maximum": 9},
    "a length beside null": {"type": ["string", "null"], "maxLength": 3},
    "fractions": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "other properties": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                         "additionalProperties": {"type": "integer"}},
    "optional properties": {"type": "object", "properties": {k: {"type": "null"} for k in "abc"}, "required": ["b"],
                            "additionalProperties": False},
    "allOf of one": {"allOf": [{"type": "integer", "minimum": 1, "maximum": 5}]},
    "a long string": {"type": "object", "properties": {"s": {"type": "string", "minLength": 3}}, "required": ["s"],
                      "additionalProperties": False},
}  # fmt: skip


def walk(schema: str, choose: random.Random) -> bytes | None:
    """A random answer, byte by byte, among those that the grammar allows; None when it grows too long."""
    import xgrammar

    bytes_and_end = [bytes([value]) for value in range(256)] + [b"<end>"]
    vocabulary = xgrammar.TokenizerInfo(bytes_and_end, xgrammar.VocabType.RAW, stop_token_ids=[256])
    compiled = xgrammar.GrammarCompiler(vocabulary, max_threads=1).compile_json_schema(
        schema, any_whitespace=False, separators=(",", ":")
    )
    matcher, mask, made = xgrammar.GrammarMatcher(compiled), xgrammar.allocate_token_bitmask(1, 257), b""
    for _ in range(LONGEST):
        matcher.fill_next_token_bitmask(mask)
        allowed = [i for i in range(257) if int(mask[0][i // 32]) >> (i % 32) & 1]
        if 256 in allowed and (len(allowed) == 1 or choose.random() < 0.3):
            return made
        open_ways = [i for i in allowed if i != 256]
        closing = [i for i in open_ways if i in b'"}],']
        byte = choose.choice(closing if closing and choose.random() < 0.5 else open_ways)
        assert matcher.accept_token(byte)
        made += bytes([byte])
    return None


@pytest.mark.parametrize("name", GOOD | MORE)
def test_every_random_answer_of_the_grammar_obeys_the_clients_schema(name: str) -> None:
    schema = (GOOD | MORE)[name]
    choose, judge = random.Random(7), Draft202012Validator(schema)
    answers = [walk(checked(schema, Caps()), choose) for _ in range(WALKS)]
    whole = [answer for answer in answers if answer is not None]
    assert len(whole) > WALKS / 2
    for answer in whole:
        # In strings without a bound, bytes at random are not always UTF-8; a detokenizer replaces what is none.
        strict = "strict" if "Length" in str(schema) else "replace"
        judge.validate(json.loads(answer.decode("utf-8", strict)))
