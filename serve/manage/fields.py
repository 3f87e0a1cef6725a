"""The options by which commands set fields, and what they give to the allow-lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from serve.errors import BadRequest
from serve.tenants.given import CeilingsGiven, Given, LimitsGiven, explained

_G = TypeVar("_G", bound=Given)
_DIGITS = 100  # more than any limit has; Python does not read thousands of them
Limit = Annotated[list[str] | None, typer.Option("--limit", metavar="NAME=NUMBER", help=(
    f"How much it may use; `none` takes the limit away. Names: {', '.join(LimitsGiven.model_fields)}."))]  # fmt: skip
Ceiling = Annotated[list[str] | None, typer.Option("--ceiling", metavar="NAME=NUMBER", help=(
    f"The most one request may ask for. Names: {', '.join(CeilingsGiven.model_fields)}."))]  # fmt: skip
Models = Annotated[str | None, typer.Option(metavar="A,B", help="Models and adapters it may use; `all` for each.")]
Scopes = Annotated[str | None, typer.Option(metavar="A,B", help="What the key opens: generate, usage.")]
Weight = Annotated[float | None, typer.Option(help="Of its fair share: twice the weight, twice the tokens.")]
Band = Annotated[str | None, typer.Option(help="interactive, standard or batch: strict, from left to right.")]
Expires = Annotated[str | None, typer.Option(metavar="TIME", help="2031-01-01T00:00:00Z, or `never`.")]


def given(model: type[_G], **options: Any) -> _G:
    """The fields that were given. BadRequest names one that is wrong."""
    raw: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name in {"limits", "ceilings"} & raw.keys():
        raw[name] = dict(_pair(text) for text in raw[name])
    if "models" in raw:
        raw["models"] = None if raw["models"] == "all" else _names(raw["models"])
    if "scopes" in raw:
        raw["scopes"] = _names(raw["scopes"])
    if raw.get("expires_at") == "never":
        raw["expires_at"] = None
    try:
        return model.model_validate(raw)
    except ValidationError as e:
        raise explained(e, model) from None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _pair(text: str) -> tuple[str, int | None]:
    name, found, number = text.partition("=")
    if not found or not (number == "none" or (number.isdecimal() and len(number) <= _DIGITS)):
        raise BadRequest(f"{text[:100]}: write it as {name[:100]}=NUMBER or {name[:100]}=none")
    return name, None if number == "none" else int(number)


def is_any(options: Iterable[Any]) -> bool:
    return any(option is not None for option in options)
