"""One YAML file becomes one frozen `Settings`. The only reader of the environment.

Unknown keys are errors with a suggestion; every field says its unit. `STARSERVE__HTTP__PORT=9000` overrides
`http.port`: two underscores between names, the value read as YAML. Lists (`models`) cannot be overridden so.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from serve.limit_settings import LimitStore
from serve.model_settings import Model
from serve.services import Admin, Database, Frozen

ENVIRONMENT_PREFIX = "STARSERVE__"
LONGEST_INSTANCE_FOLDER = 25  # characters
# As browsers write it: scheme, host, and a port that is not the scheme's own. HAProxy's file holds it word by word.
ORIGIN = r"^(\*|[a-z][a-z0-9+.-]*://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]*)?)$"


class SettingsError(ValueError):
    """What is wrong with a configuration, one sentence a line, each naming its field."""


class Http(Frozen):
    host: str = Field("127.0.0.1", description="Address of the one public port; 0.0.0.0 opens it to the network.")
    port: int = Field(8000, ge=1, le=65535, description="The one public port.")
    proxy: Literal["haproxy", "plain"] = Field("haproxy", description="plain: Ray Serve's own, slower and less strict.")
    header_timeout_s: int = Field(10, ge=1, description="Seconds a client may take to send its request head.")
    connections_per_address: int = Field(1024, ge=1, description="Open connections allowed to one client address.")
    comment_after_s: float = Field(10, gt=0, description="A stream silent for so many seconds sends an SSE comment.")
    cors_origins: tuple[Annotated[str, Field(pattern=ORIGIN)], ...] = Field(
        (), description='Web pages that may call from a browser: exact origins ("https://example.com"), or "*" alone.'
    )

    @model_validator(mode="after")
    def _any_origin_or_some(self) -> Http:
        if "*" in self.cors_origins and len(self.cors_origins) > 1:
            raise ValueError('cors_origins: "*" stands alone')
        return self


class Router(Frozen):
    replicas: int = Field(1, ge=1, description="Router processes; one relays some thousand tokens per second.")
    cores: float = Field(0.25, gt=0, description="CPU cores that Ray reserves for each router.")
    tokenizer_threads: int = Field(2, ge=1, description="Threads that tokenise, per router.")
    drain_s: float = Field(600, ge=0, description="Seconds that a router has for its streams when Serve replaces it.")
    stop_s: float = Field(30, ge=0, description="Seconds that answers may go on when the whole is stopped.")


class Caps(Frozen):
    body_bytes: int = Field(1 << 20, ge=1024, description="Largest request body, in bytes.")
    body_timeout_s: float = Field(30, gt=0, description="Seconds a client may take to send its body.")
    stops: int = Field(16, ge=0, description="Most stop strings in one request.")
    stop_characters: int = Field(256, ge=1, description="Longest stop string, in characters.")
    stop_token_ids: int = Field(64, ge=0, description="Most stop token ids in one request.")
    choices: int = Field(8, ge=1, description="Most answers per prompt (`n`).")
    prompts: int = Field(32, ge=1, description="Most prompts in one completion request.")
    messages: int = Field(1024, ge=1, description="Most messages in one chat, and parts of all their contents.")
    refused_per_minute: int = Field(
        600,
        ge=1,
        description="Bodies of one key that may be refused in a minute; one of over 64 KiB counts as several.",
    )
    logprobs: int = Field(20, ge=0, description="Most alternatives per answered token.")
    echo_logprobs: int = Field(5, ge=0, description="Most alternatives per token when the prompt is scored too.")
    logprob_entries: int = Field(
        2_000_000,
        ge=1,
        description="Most log-probabilities in one answer: tokens, of the prompt too with echo, times alternatives.",
    )
    logit_bias: int = Field(300, ge=0, description="Most tokens in one logit_bias.")
    schema_bytes: int = Field(1 << 16, ge=2, description="Largest JSON schema of a response_format, in bytes.")
    schema_depth: int = Field(16, ge=1, description="Deepest nesting of objects and lists in such a schema.")
    schema_parts: int = Field(2000, ge=1, description="Most objects and lists in such a schema.")


class Tracing(Frozen):
    endpoint: str | None = Field(None, description="An OTLP/HTTP collector's traces URL; needs starserve[otel].")
    sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of requests traced when the client sends no trace.")
    export_every_s: float = Field(5, gt=0, description="Seconds between two batches to the collector.")


class Settings(Frozen):
    """One deployment."""

    name: str = Field("starserve", pattern=r"^[a-z][a-z0-9-]*$", description="Name in logs and of the Ray app.")
    http: Http = Http()
    router: Router = Router()
    caps: Caps = Caps()
    logs: Literal["json", "text"] = Field("json", description="Style of the one line per request.")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="Prometheus port on loopback; else a free one.")
    metrics_tenants: int = Field(200, ge=0, description="Tenants with metrics of their own; others share one label.")
    tracing: Tracing = Tracing()
    database: Database = Database()
    limit_store: LimitStore = LimitStore()
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="ISO 4217 code of prices and budgets.")
    admin: Admin = Admin()
    models: Annotated[tuple[Model, ...], Field(min_length=1, description="The models, each with its own engines.")]

    @model_validator(mode="after")
    def _names_differ(self) -> Settings:
        names = [m.name for m in self.models] + [a.name for m in self.models for a in m.adapters]
        if len(set(names)) != len(names):
            raise ValueError("models: two entries, or their adapters, have the same name")
        return self


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read a configuration; raises SettingsError with one line per mistake."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise SettingsError(f"{path}: {e.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise SettingsError(f"{path}: not YAML: {e}") from None
    if not isinstance(raw, dict):
        raise SettingsError(f"{path}: a configuration is a mapping that starts with `models:`")
    return parse(_overridden(raw, environment))


def parse(raw: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(raw)
    except ValidationError as e:
        raise SettingsError("\n".join(_sentence(error) for error in e.errors())) from None


def overridden(model: Model, changes: Iterable[str]) -> Model:
    """The model with some fields changed, each given as `engine.ngram_tokens=4`; the value is YAML."""
    raw: dict[str, Any] = model.model_dump(mode="json")
    for change in changes:
        where, found, value = change.partition("=")
        *parents, leaf = where.split(".")
        place = raw
        for parent in parents:
            below = place.get(parent)
            if not isinstance(below, dict):
                raise SettingsError(f"{change}: a model has no {parent}")
            place = below
        if not found:
            raise SettingsError(f"{change}: write it as name=value")
        place[leaf] = yaml.safe_load(value)
    return parse({"models": [raw]}).models[0]


def embedded_config(name: str = "smollm2-cpu.yaml") -> Path:
    """A configuration that is shipped with the package (or lies in the source tree)."""
    shipped = Path(str(files("serve"))) / "configs" / name
    return shipped if shipped.exists() else Path(__file__).parent.parent / "configs" / name


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where prepared models lie: STARSERVE_CACHE, or starserve/ in the user's cache folder."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(environment.get("STARSERVE_CACHE") or Path(base) / "starserve")


def instance_folder(port: int, environment: Mapping[str, str] = os.environ) -> Path:
    """Keys, sockets and state of the instance on `port`: STARSERVE_STATE/PORT, or ~/.starserve/PORT.

    A socket's path has about 100 bytes, and Ray puts 70 of its own below: where the home folder is too deep for
    that, a folder of this user in /tmp takes its place.
    """
    if chosen := environment.get("STARSERVE_STATE"):
        return Path(chosen) / str(port)
    home = Path.home() / ".starserve" / str(port)
    return home if len(str(home)) <= LONGEST_INSTANCE_FOLDER else Path(f"/tmp/ss-{os.getuid()}/{port}")


def _overridden(raw: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    result = dict(raw)
    for variable in sorted(v for v in environment if v.startswith(ENVIRONMENT_PREFIX)):
        *parents, leaf = variable[len(ENVIRONMENT_PREFIX) :].lower().split("__")
        place = result
        for parent in parents:
            below = place.get(parent) or {}
            if not isinstance(below, dict):
                raise SettingsError(f"{variable}: `{parent}` is not a mapping, so it cannot be overridden")
            place[parent] = place = dict(below)
        place[leaf] = yaml.safe_load(environment[variable])
    return result


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{where or 'configuration'}: {error['msg'].removeprefix('Value error, ')}"
    return f"{where}: unknown setting{did_you_mean(str(error['loc'][-1]), _fields_at(error['loc'][:-1]))}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    here: type[BaseModel] = Settings
    for part in location:
        if (field := here.model_fields.get(str(part))) and (below := _room_in(field.annotation)):
            here = below
    return list(here.model_fields)


def _room_in(annotation: Any) -> type[BaseModel] | None:
    """The first room of settings that an annotation speaks of, such as Model in `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((room for part in get_args(annotation) if (room := _room_in(part))), None)


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of a sentence: nothing, or a suggestion."""
    close = difflib.get_close_matches(word[:100], known, n=1)  # a client chose the word, and its length
    return f"; did you mean `{close[0]}`?" if close else ""
