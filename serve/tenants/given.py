"""What an administrator may set, and nothing else: one allow-list for the command, the admin API and the YAML import.

A field that is not given is left as it is; null takes a limit away. Whatever passes here can be stored, shown and
worked with; a number never stands for a truth value or a time, nor the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    ValidationError,
)

from serve.errors import BadRequest, UnknownField
from serve.settings import did_you_mean
from serve.words import Band, Scope

_ID = r"^[a-z0-9][a-z0-9._-]{0,62}$"
Id = Annotated[str, StringConstraints(pattern=_ID)]
ModelName = Annotated[str, StringConstraints(pattern=r"^[\w.:/-]{1,200}$")]
KeyName = Annotated[str, StringConstraints(pattern=r"^\w[\w .@:/+-]{0,62}$")]
# The sums of several such numbers are exact in the doubles of Redis's Lua too: below 2^53.
MOST = 10**15
Count = Annotated[int, Field(strict=True, ge=0, le=MOST)]
# Service is divided by it and summed for as long as a replica lives.
Weight = Annotated[float, Field(strict=True, ge=0.001, le=1000)]
_MOST_MODELS = 256
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_OUTSIDE = "must lie between 1970 and 9999, in UTC"


def _no_number(value: object) -> object:
    """Refuse what pydantic would take for seconds since 1970, or for milliseconds where it is large."""
    if isinstance(value, datetime) or (isinstance(value, str) and _DAY.match(value)):
        return value
    raise ValueError("write it as 2031-01-01T00:00:00Z")


def _whole_second(moment: datetime) -> datetime:
    """As it is kept: in whole seconds of UTC. What lies outside the calendar there could not be shown."""
    try:
        whole = moment.astimezone(UTC).replace(microsecond=0)
    except OverflowError:
        raise ValueError(_OUTSIDE) from None
    if whole.year < 1970:
        raise ValueError(_OUTSIDE)
    return whole


def _no_null(value: object) -> object:
    """Null only where it says something; a default is not looked at."""
    if value is None:
        raise ValueError("cannot be null; leave it out")
    return value


NEVER_NULL = BeforeValidator(_no_null)
Moment = Annotated[AwareDatetime, BeforeValidator(_no_number), AfterValidator(_whole_second)]


def check_id(text: str) -> None:
    """BadRequest for what cannot be the id of an organisation or a tenant."""
    if not re.match(_ID, text) or text.endswith("\n"):
        raise BadRequest("id: at most 63 small letters, digits, dots, dashes and underscores", "id")


class Given(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def merged(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Columns after this was set, of those that it sets. `before`: the columns so far."""
        after = dict[str, Any]()
        for name in sorted(self.model_fields_set & before.keys()):
            value = getattr(self, name)
            if isinstance(value, Given):
                both = {**before[name], **{n: getattr(value, n) for n in value.model_fields_set}}
                value = {n: both[n] for n in sorted(both) if both[n] is not None}
            elif isinstance(value, frozenset):
                value = sorted(value)
            elif name == "expires_at" and value is not None:
                value = value.timestamp()
            after[name] = value
        return after


class LimitsGiven(Given):
    """Each null or absent: no limit of that kind."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = Field(None, description="Prompt and output together.")
    concurrent_requests: Count | None = None
    queued_tokens: Count | None = Field(None, description="Of requests that have no token yet.")
    tokens_per_day: Count | None = Field(None, description="Of UTC.")
    budget_per_month: Count | None = Field(None, description="Of UTC, in millionths of the currency.")


class CeilingsGiven(Given):
    """The most that one request may ask for."""

    prompt_tokens: Count | None = None
    output_tokens: Count | None = None
    choices: Count | None = Field(None, description="Over all prompts of the request.")


Limited = Annotated[LimitsGiven | None, NEVER_NULL]
Suspended = Annotated[StrictBool | None, NEVER_NULL]


class OrganisationGiven(Given):
    limits: Limited = None
    suspended: Suspended = None


class TenantGiven(Given):
    weight: Annotated[Weight | None, NEVER_NULL] = None
    band: Annotated[Band | None, NEVER_NULL] = None
    models: Annotated[frozenset[ModelName], Field(max_length=_MOST_MODELS)] | None = Field(
        None, description="Null: all."
    )
    limits: Limited = None
    ceilings: Annotated[CeilingsGiven | None, NEVER_NULL] = None
    suspended: Suspended = None


class KeyGiven(Given):
    name: Annotated[KeyName | None, NEVER_NULL] = None
    scopes: Annotated[frozenset[Scope] | None, NEVER_NULL] = None
    models: Annotated[frozenset[ModelName], Field(max_length=_MOST_MODELS)] | None = Field(
        None, description="Of its tenant's; null: all of them."
    )
    limits: Limited = None
    expires_at: Moment | None = Field(None, description="With a time zone, in whole seconds; null: never.")
    suspended: Suspended = None


def explained(error: ValidationError, model: type[BaseModel]) -> BadRequest:
    """The first mistake as an error that names its field; never its value."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])  # a wrong name explains the rest
    location = first["loc"]
    where = ".".join(str(part)[:100] for part in location)  # an unknown field's name is whatever a client wrote
    if first["type"] == "extra_forbidden":
        suggestion = did_you_mean(str(location[-1])[:100], _fields_at(model, location[:-1]))
        return UnknownField(f"{where}: unknown field{suggestion}", where)
    message = first["msg"].removeprefix("Value error, ")
    return BadRequest(f"{where + ': ' if where else ''}{message}", where or None)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields at a place inside a model, through lists and optional parts."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inside = _models_in(model.model_fields[part].annotation)
            model = inside[0] if inside else model
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]
