"""JSON schemas that an answer can be held to, and hostile ones with what their refusal says."""

from __future__ import annotations

from typing import Any

GOOD: dict[str, dict[str, Any]] = {
    "flat": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
             "additionalProperties": False},
    "enum": {"type": "object", "properties": {"c": {"enum": ["red", 1, None, True]}}, "required": ["c"],
             "additionalProperties": False},
    "nested": {"type": "object", "required": ["a"], "additionalProperties": False, "properties": {
        "a": {"type": "object", "required": ["b"], "additionalProperties": False, "properties": {
            "b": {"type": "object", "required": ["c"], "additionalProperties": False, "properties": {
                "c": {"type": "boolean"}}}}}}},
    "list": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 5}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x"]}], "items": False, "minItems": 2},
    "local $ref": {"$defs": {"point": {"type": "object", "required": ["x"], "additionalProperties": False,
                                       "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}}}},
                   "type": "object", "required": ["from", "to"], "additionalProperties": False,
                   "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}}},
    "recursive $ref": {"$defs": {"tree": {"type": "object", "required": ["leaf"], "additionalProperties": False,
                                          "properties": {"leaf": {"type": "boolean"}, "below": {
                                              "type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}}}}},
                       "$ref": "#/$defs/tree"},
    "anyOf": {"type": "object", "required": ["v"], "additionalProperties": False, "properties": {
        "v": {"anyOf": [{"type": "boolean"}, {"type": "null"}, {"enum": ["none"]}]}}},
    "short string": {"type": "object", "required": ["s"], "additionalProperties": False, "properties": {
        "s": {"type": "string", "minLength": 1, "maxLength": 8}}},
    "const and date": {"type": "object", "required": ["kind", "day"], "additionalProperties": False, "properties": {
        "kind": {"const": "event"}, "day": {"type": "string", "format": "date"}}},
}  # fmt: skip


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a regular expression": ({"type": "string", "pattern": "((a{1,200}){1,200}){1,200}"}, "regular expressions"),
    "patternProperties": ({"type": "object", "patternProperties": {"(a+)+$": {}}}, "regular expressions"),
    "a remote $ref": ({"$ref": "https://example.org/x.json"}, "only local"),
    "a file $ref": ({"$ref": "file:///etc/passwd"}, "only local"),
    "a missing $ref": ({"$ref": "#/$defs/nope"}, "not there"),
    "a $ref to itself": ({"$ref": "#"}, "back to itself"),
    "two $refs to each other": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        "back to itself",
    ),
    "too deep": (nested(20), "nested deeper than 16"),
    "deeper than the stack": (nested(5_000), "nested deeper than 16"),
    "too large": ({"enum": ["x" * 70_000]}, "larger than 65536 bytes"),
    "an endless string": ({"type": "string", "minLength": 10**9}, "sum up to"),
    "many long strings": (
        {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 10_000} for i in range(100)}},
        "sum up to",
    ),
    "an endless number": ({"type": "integer", "minimum": 10**400}, "beyond 2"),
    "bounds that exclude all": (
        {"type": "array", "items": {}, "minItems": 3, "maxItems": 2},
        "minItems above maxItems",
    ),
    "a type that is none": ({"type": "nope"}, "not valid JSON Schema"),
    "properties that are none": ({"type": "object", "properties": []}, "not valid JSON Schema"),
    "a keyword nobody holds to": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "not": ({"not": {"type": "integer"}}, "'not'"),
    "several in allOf": ({"allOf": [{"type": "string"}, {"enum": ["a"]}]}, "allOf"),
    "an unknown format": ({"type": "string", "format": "zzz"}, "format"),
    "a reference that is no place": ({"$ref": "#foo"}, "only local"),
    "a long chain of $refs": (
        {"$defs": {**{f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(900)}, "d900": {}}, "$ref": "#/$defs/d0"},
        "chain of more than 64",
    ),
    "many parts": ({"anyOf": [{}] * 2000}, "has 2002 objects and lists"),
    "what stands beside a $ref": (
        {"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a", "minimum": 5},
        "beside \\$ref",
    ),
    "what stands beside anyOf": ({"type": "string", "anyOf": [{"maxLength": 2, "type": "string"}]}, "beside anyOf"),
    "what stands beside enum": ({"enum": ["ab"], "maxLength": 1, "type": "string"}, "beside enum"),
    "a value of another type": ({"type": "string", "enum": ["a", 3]}, "not of its type"),
    "a bound without a type": ({"minimum": 3}, "without type number"),
    "a length without a type": ({"type": "integer", "maxLength": 3}, "without type string"),
    "a required property that is none": ({"type": "object", "required": ["zz"]}, "none of its properties"),
    "a count of nothing": ({"type": "array", "minItems": 2}, "without items"),
    "a hidden one": (
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "array", "items": {"pattern": "a"}}]}}},
        "#/properties/a/anyOf/0/items uses pattern",
    ),
}
