"""JSON schemas that clients send: what of them the engine can hold an answer to. Pure rules.

An allow-list of keywords. The engine's grammar compiler (xgrammar) skips keywords that it does not know; an answer
would then parse and still break the schema. A schema that could never be held, or only at a cost that others would
feel (regular expressions, endless references, huge bounds), is refused before it reaches an engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from serve.errors import BadRequest
from serve.settings import Caps

ANY_OBJECT = '{"type":"object"}'
_FIELD = "response_format.json_schema.schema"
_HELD = {
    "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "enum",
    "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minLength", "maxLength", "format",
}  # fmt: skip
_WORDS = {"title", "description", "default", "examples", "deprecated", "discriminator", "readOnly", "writeOnly",
          "$schema", "$comment"}  # fmt: skip
# Formats that xgrammar 0.2 writes as grammar (vllm/v1/structured_output/backend_xgrammar.py lists them).
_FORMATS = {"email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri",
            "uri-reference", "uri-template", "json-pointer", "relative-json-pointer"}  # fmt: skip
_NEEDS_TYPE = {
    "minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
    "minLength": "string", "maxLength": "string", "format": "string",
}  # fmt: skip
_ALONE = ("$ref", "anyOf", "oneOf", "allOf")  # the compiler does not look at what stands beside these
_BESIDE_ALONE = {"$defs", "definitions"}
# All characters but quote, backslash, controls and surrogates, in ranges of one length in UTF-8: over a range that
# crosses lengths, or written with escapes, the compiler lets bytes through that are no UTF-8 and count otherwise.
_PLAIN = " !#-\\[\\]-~" + "\u0080-\u07ff" + "\u0800-\ud7ff" + "\ue000-\uffff" + "\U00010000-\U0010ffff"
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_MOST_COUNTED = 1 << 16  # of all these bounds together: the grammar grows with them
_LARGEST_NUMBER = 1 << 53
_LONGEST_CHAIN = 64  # of references and alternatives that lead from one to the next, with nothing of an answer between


def checked(schema: Mapping[str, Any], caps: Caps) -> str:
    """The schema as text for the engine; raises BadRequest that names the place of what cannot be held."""
    levels, parts = _size(schema)
    if levels > caps.schema_depth:
        raise _refusal("", f"is nested deeper than {caps.schema_depth} levels")
    if parts > caps.schema_parts:
        raise _refusal("", f"has {parts} objects and lists; at most {caps.schema_parts} are allowed")
    try:
        size = len(json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode())
    except ValueError:
        raise _refusal("", "holds a number that is not finite") from None
    if size > caps.schema_bytes:
        raise _refusal("", f"is larger than {caps.schema_bytes} bytes")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as e:
        raise _refusal("".join(f"/{part}" for part in e.absolute_path), "is not valid JSON Schema (2020-12)") from None
    counted = 0
    for place, part in _subschemas(schema, ""):
        _check(place, part, schema)
        counted += sum(part.get(name, 0) for name in _COUNTS)
    if counted > _MOST_COUNTED:
        raise _refusal("", f"has bounds of length that sum up to {counted}; at most {_MOST_COUNTED} are allowed")
    _check_references(schema)
    return json.dumps(_for_engine(schema), ensure_ascii=False, separators=(",", ":"))


def _for_engine(schema: Mapping[str, Any]) -> Any:
    """The schema with lengths of strings written as the characters that they may have.

    The compiler's own lengths let raw control characters through, which are no JSON. Here quotes, backslashes and
    control characters, which would be written as escapes, are left out of such strings.
    """
    copy = deepcopy(dict(schema))
    for _, part in list(_subschemas(copy, "")):
        # JSON Schema calls 1.0 a whole number; the compiler, and a pattern, want it written as one.
        part |= {name: int(part[name]) for name in _COUNTS if name in part}
        if "minLength" in part or "maxLength" in part:
            low, high = part.pop("minLength", 0), part.pop("maxLength", "")
            part["pattern"] = f"^[{_PLAIN}]{{{low},{high}}}$"
    return copy


def _check(place: str, part: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    for keyword in part:
        if keyword in ("pattern", "patternProperties"):
            raise _refusal(place, f"uses {keyword}; regular expressions are not served")
        if keyword not in _HELD | _WORDS:
            raise _refusal(place, f"uses {keyword[:50]!r}, which an answer cannot be held to")
    _check_combination(place, part)
    if len(part.get("allOf", ())) > 1:
        raise _refusal(place, "uses allOf with several schemas; merge them into one")
    if (name := part.get("format")) is not None:
        if name not in _FORMATS:
            raise _refusal(place, "uses a format that is not known here")
        if "minLength" in part or "maxLength" in part:
            raise _refusal(place, "uses format together with minLength or maxLength; send one")
    for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if abs(part.get(name, 0)) > _LARGEST_NUMBER:
            raise _refusal(place, f"uses {name} beyond 2^53")
    for low, high in (("minItems", "maxItems"), ("minLength", "maxLength"), ("minimum", "maximum")):
        if low in part and high in part and part[low] > part[high]:
            raise _refusal(place, f"has {low} above {high}")
    if "$ref" in part:
        _resolved(place, part["$ref"], whole)


def _check_combination(place: str, part: Mapping[str, Any]) -> None:
    """Refuse keywords that the compiler would leave out of sight because of what stands beside them, or does not."""
    held = part.keys() & _HELD
    types = {part["type"]} if isinstance(part.get("type"), str) else set(part.get("type", ()))
    for keyword in _ALONE:
        if keyword in held and (others := held - {keyword} - _BESIDE_ALONE):
            raise _refusal(place, f"uses {min(others)} beside {keyword}; put it inside")
    for keyword in ("enum", "const"):
        if keyword in held and (others := held - {keyword, "type"} - _BESIDE_ALONE):
            raise _refusal(place, f"uses {min(others)} beside {keyword}; the values say it all")
    values = part.get("enum", [part["const"]] if "const" in part else [])
    if "type" in part and not all(Draft202012Validator({"type": part["type"]}).is_valid(value) for value in values):
        raise _refusal(place, "has a value that is not of its type")
    for keyword in held & _NEEDS_TYPE.keys():
        if not types & {_NEEDS_TYPE[keyword], "integer" if _NEEDS_TYPE[keyword] == "number" else ""}:
            raise _refusal(place, f"uses {keyword} without type {_NEEDS_TYPE[keyword]}")
    if unknown := set(part.get("required", ())) - part.get("properties", {}).keys():
        raise _refusal(place, f"requires {min(unknown)[:50]!r}, which is none of its properties")
    if "items" not in part and ("maxItems" in part or "minItems" in part):
        raise _refusal(place, "uses minItems or maxItems without items")


def _subschemas(part: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with its place. Values such as enum, const and default are no schemas."""
    if not isinstance(part, dict):
        return
    yield place, part
    for keyword, value in part.items():
        here = f"{place}/{keyword}"
        if keyword in ("properties", "$defs", "definitions"):
            for name, inner in value.items():
                yield from _subschemas(inner, f"{here}/{name}")
        elif keyword in ("anyOf", "oneOf", "allOf", "prefixItems"):
            for index, inner in enumerate(value):
                yield from _subschemas(inner, f"{here}/{index}")
        elif keyword in ("items", "additionalProperties"):
            yield from _subschemas(value, here)


def _resolved(place: str, reference: str, whole: Mapping[str, Any]) -> Any:
    if reference != "#" and not reference.startswith("#/"):
        raise _refusal(place, "has a $ref that leaves the schema; only local ones (#/…) are followed")
    found: Any = whole
    for name in reference[1:].split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise _refusal(place, "has a $ref to a place that is not there")
        found = found[name]
    if not isinstance(found, dict | bool):
        raise _refusal(place, "has a $ref to something that is no schema")
    return found


def _check_references(whole: Mapping[str, Any]) -> None:
    """Refuse references that come back to themselves before any character of an answer: they mean nothing.

    A client chose how long their chains are, so that each schema is followed once, and without a call inside a call.
    """
    settled, within = set[int](), set[int]()
    for place, part in _subschemas(whole, ""):
        ways = [(part, _led_to(place, part, whole))] if id(part) not in settled else []
        within |= {id(part) for part, _ in ways}
        while ways:
            here, further = ways[-1]
            if (inner := next((x for x in further if isinstance(x, dict) and id(x) not in settled), None)) is None:
                within.discard(id(here))
                settled.add(id(here))
                ways.pop()
            elif id(inner) in within:
                raise _refusal(place, "has a $ref that leads back to itself")
            elif len(ways) == _LONGEST_CHAIN:
                raise _refusal(place, f"begins a chain of more than {_LONGEST_CHAIN} references")
            else:
                within.add(id(inner))
                ways.append((inner, _led_to(place, inner, whole)))


def _led_to(place: str, part: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas that an answer to this one must obey at the same place."""
    if "$ref" in part:
        yield _resolved(place, part["$ref"], whole)
    for keyword in ("anyOf", "oneOf", "allOf"):
        yield from part.get(keyword, ())


def _size(schema: Any) -> tuple[int, int]:
    """Levels of objects and lists, and how many there are; level by level, or a deep one would exhaust the stack."""
    levels, parts, level = 0, 0, [schema]
    while level := [x for x in level if isinstance(x, dict | list)]:
        levels, parts = levels + 1, parts + len(level)
        level = [inner for x in level for inner in (x.values() if isinstance(x, dict) else x)]
    return levels, parts


def _refusal(place: str, sentence: str) -> BadRequest:
    """`place` is a JSON pointer of the client's own making, so it is cut."""
    return BadRequest(f"{_FIELD}{'#' + place[:100] if place else ''} {sentence}", "response_format")
