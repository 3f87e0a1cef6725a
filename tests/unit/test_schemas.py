"""JSON schemas of clients: what an answer can be held to passes, everything else is refused quickly and by name."""

from __future__ import annotations

import json
import re
import time

import pytest

from serve.errors import BadRequest
from serve.schemas import checked
from serve.settings import Caps
from tests.support.schemas import GOOD, HOSTILE


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_held_passes_unchanged_but_for_lengths(name: str) -> None:
    passed = json.loads(checked(GOOD[name], Caps()))
    assert (passed == GOOD[name]) is (name != "short string")


def test_lengths_of_strings_become_characters_that_need_no_escape() -> None:
    schema = {"type": ["string", "null"], "minLength": 2, "maxLength": 5}
    pattern = json.loads(checked(schema, Caps()))["pattern"]
    assert schema == {"type": ["string", "null"], "minLength": 2, "maxLength": 5}
    for text, fits in (("ab", True), ("a", False), ("abcdef", False), ('a"', False), ("a\\", False), ("a\n", False)):
        assert (re.search(pattern, text) is not None) is fits


def test_a_count_that_is_written_as_a_fraction_reaches_the_engine_as_a_whole_number() -> None:
    string = json.loads(checked({"type": "string", "minLength": 1.0, "maxLength": 2.0}, Caps()))
    assert string["pattern"].endswith("]{1,2}$")
    items = checked({"type": "array", "items": {"type": "null"}, "minItems": 1.0, "maxItems": 3.0}, Caps())
    assert '"minItems":1,"maxItems":3' in items


def test_a_number_without_an_end_is_refused() -> None:
    """JSON has none, but 1e400 is read as one."""
    with pytest.raises(BadRequest, match="not finite"):
        checked({"const": 1e400}, Caps())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_are_refused_quickly_and_by_name(name: str) -> None:
    schema, sentence = HOSTILE[name]
    began = time.monotonic()
    with pytest.raises(BadRequest, match=sentence) as refused:
        checked(schema, Caps())
    assert time.monotonic() - began < 1
    assert refused.value.param == "response_format"


def test_words_of_a_schema_are_never_schemas() -> None:
    """`enum`, `const`, `default` and `examples` may hold anything, also what looks like a keyword."""
    schema = {"enum": [{"pattern": "x"}], "default": {"$ref": "nowhere"}, "title": "pattern"}
    checked(schema, Caps())


def test_a_name_of_a_property_is_no_keyword() -> None:
    checked({"type": "object", "properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}}}, Caps())
