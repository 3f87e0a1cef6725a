"""`starserve check`: can this configuration work, and on this machine? Sentences, no tracebacks."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from serve import eight_bits
from serve.deploy.instance import port_is_busy
from serve.engines.arguments import check_arguments
from serve.gpus import Gpu, visible
from serve.model_settings import Model
from serve.settings import Settings, SettingsError
from serve.starcoder import ARCHITECTURE, PLUGIN, plugin_is_allowed
from serve.weights.adapters import checked
from serve.weights.manifest import is_prepared, prepared_folder
from serve.weights.package import gguf_files, positions_of
from serve.weights.prepare import downloads

ENGINE_OVERHEAD_GIB = 2.0  # of one engine beyond weights and KV cache: Python, torch, activations
STACK_GIB = 2.0  # Ray, router, HAProxy
GIB = 1 << 30
PREPARED_GIB = 2.0  # disk that an unprepared embedded model wants


def machine_problems(settings: Settings, cache: Path, gpus: Sequence[Gpu] | None = None) -> list[str]:
    """What this machine lacks whatever else runs on it, each with what to do. Empty when it will do."""
    problems = []
    if sys.version_info[:2] != (3, 11):
        problems.append(
            f"Python {platform.python_version()}: starserve runs on Python 3.11; make .venv with python3.11"
        )
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        problems.append(f"{platform.system()} on {platform.machine()}: starserve runs on Linux on x86_64")
    cpu = [m for m in settings.models if m.engine.device == "cpu"]
    routers = settings.router.cores * settings.router.replicas
    # Rounded down: engines run as fast beside a router that takes a quarter of a core.
    if int((cores := cores_wanted(settings.models)) + routers) > (os.cpu_count() or 1):
        problems.append(
            f"engine.cores: all engines together want {cores:g} cores and the routers {routers:g}, this machine has "
            f"{os.cpu_count()}; lower engine.cores, engine.replicas or router.replicas"
        )
    for model in cpu if not eight_bits.exact(eight_bits.CPUINFO.read_text()) else ():
        if is_prepared(model, cache) and eight_bits.multiplies_them(_config(model, cache)):
            problems.append(f"models.{model.name}: weights and activations are 8-bit integers, which this processor "
                            "multiplies inexactly (no VNNI); the answers would be wrong")  # fmt: skip
    place = next(p for p in (cache, *cache.parents) if p.exists())
    disk = shutil.disk_usage(place).free / GIB
    if any(not is_prepared(m, cache) for m in settings.models) and disk < PREPARED_GIB:
        problems.append(f"disk: preparing a model wants {PREPARED_GIB:g} GiB, {disk:.1f} GiB are free; "
                        "set STARSERVE_CACHE to a larger disk")  # fmt: skip
    return problems + _gpu_problems(settings, cache, visible(os.environ) if gpus is None else gpus)


def momentary_problems(settings: Settings, cache: Path) -> list[str]:
    """What else runs on this machine and is in the way: taken ports, taken memory."""
    problems, cpu = [], [m for m in settings.models if m.engine.device == "cpu"]
    ports = {
        "http.port": (settings.http.host, settings.http.port),
        "metrics_port": ("127.0.0.1", settings.metrics_port),
    }
    for field, (host, port) in ports.items():
        if port is not None and port_is_busy(host, port):
            problems.append(
                f"{field}: {port} is in use; stop what listens there, or choose another with "
                f"STARSERVE__{field.upper().replace('.', '__')}=…"
            )
    memory, free = memory_wanted_gib(cpu, cache), psutil.virtual_memory().available / GIB
    if cpu and memory > free:
        problems.append(
            f"memory: the engines and their routers want {memory:.1f} GiB, {free:.1f} GiB are free; "
            "lower engine.kv_cache_gib or engine.replicas"
        )
    return problems


def _gpu_problems(settings: Settings, cache: Path, gpus: Sequence[Gpu]) -> list[str]:
    models = [m for m in settings.models if m.engine.device == "gpu"]
    wanted = sum(m.engine.replicas * m.engine.ranks for m in models)
    if wanted > len(gpus):
        there = f"{len(gpus)}" if gpus else "none that nvidia-smi shows"
        return [
            f"engine.device: all engines together want {wanted} GPU(s), this machine has {there}; lower "
            "engine.replicas or engine.tensor_parallel_size, or serve a small model with device: cpu"
        ]
    problems, largest = [], max((gpu.memory_gib for gpu in gpus), default=0.0)
    for model in models:
        weights, share = weights_gib(model, cache) / model.engine.ranks, model.engine.gpu_memory_utilization
        if weights > share * largest:
            problems.append(
                f"models.{model.name}: {weights:.1f} GiB of weights per GPU do not fit in {share:g} of {largest:.1f} "
                "GiB (engine.gpu_memory_utilization); raise engine.tensor_parallel_size"
            )
    return problems


def machine_warnings(settings: Settings) -> list[str]:
    """What works here, and slowly."""
    ranks = sum(m.engine.ranks * m.engine.replicas for m in settings.models if m.engine.device == "cpu")
    if ranks <= (cores := os.cpu_count() or 1):
        return []
    return [f"engine.tensor_parallel_size: {ranks} ranks share {cores} cores and wait for each other"]


def setting_problems(settings: Settings, cache: Path) -> list[str]:
    """What is wrong on any machine: settings that contradict each other, or that must be given."""
    return [problem for model in settings.models for problem in _model_problems(model, cache)]


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def shared_problems(
    settings: Settings, instance: Path, is_installed: Callable[[str], bool] = _is_installed
) -> list[str]:
    """What processes of this deployment are to share and cannot: database, limits, secrets, ports.

    `instance`: its folder, where a database and secrets lie that have no place of their own.
    """
    problems, url = [], settings.database.url.get_secret_value() if settings.database.url else ""
    redis = settings.limit_store.redis_url.get_secret_value() if settings.limit_store.redis_url else ""
    wanted = (("psycopg", "database.url", url.startswith("postgresql")), ("redis", "limit_store.redis_url", redis))
    for package, field, is_wanted in wanted:
        if is_wanted and not is_installed(package):
            problems.append(f"{field}: the package {package} is not installed; pip install 'starserve[cluster]'")
    if url.startswith("sqlite:"):
        file = url.removeprefix("sqlite:///").partition("?")[0]
        if not file.startswith("/"):
            problems.append("database.url: name SQLite's file from the root, as sqlite:////FOLDER/FILE; each process "
                            "would make another one in the folder where it runs")  # fmt: skip
    if redis and not re.match(r"(rediss?|unix)://.", redis):
        problems.append("limit_store.redis_url: write it as redis://, rediss:// or unix://")
    ports = {"http.port": settings.http.port, "admin.port": settings.admin.port, "metrics_port": settings.metrics_port}
    for field, port in list(ports.items())[1:]:
        if port is not None and (other := next(name for name, p in ports.items() if p == port)) != field:
            problems.append(f"{field}: {port} is {other} too; name another")
    return problems + [f"{field}: {problem}" for field, path in _secret_files(settings, instance)
                       if (problem := _secret_problem(path))]  # fmt: skip


def shared_warnings(settings: Settings, instance: Path) -> list[str]:
    """What works, and perhaps not as it was meant."""
    warnings, routers = [], settings.router.replicas
    if routers > 1 and settings.limit_store.redis_url is None:
        warnings.append(f"router.replicas: {routers} routers without limit_store.redis_url count each alone: tenants "
                        f"get up to {routers} times their limits")  # fmt: skip
    if settings.admin.port is not None and settings.admin.host not in ("127.0.0.1", "::1", "localhost"):
        warnings.append(f"admin.host: {settings.admin.host} is open to the network, and the token is sent in clear; "
                        "put TLS in front of it")  # fmt: skip
    for field, path in _secret_files(settings, instance):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o070:
            warnings.append(f"{field}: {path} is open to its group")  # as where Kubernetes mounts it with fsGroup
    return warnings


def _secret_files(settings: Settings, instance: Path) -> Iterator[tuple[str, Path]]:
    yield "database.pepper_file", settings.database.pepper_in(instance)
    if settings.admin.port is not None:
        yield "admin.token_file", settings.admin.token_file or instance / "admin.token"


def _secret_problem(path: Path) -> str | None:
    """One that is not there is made at the first start, where it can be."""
    if not path.is_absolute():
        return f"{path}: name it from the root; processes run in other folders"
    if not path.exists():
        folder = next(p for p in path.parents if p.exists())
        may_be_made = folder.is_dir() and os.access(folder, os.W_OK)
        return None if may_be_made else f"{path}: is not there, and cannot be made"
    if not path.is_file() or not os.access(path, os.R_OK):
        return f"{path}: cannot be read"
    if stat.S_IMODE(path.stat().st_mode) & 0o007:
        return f"{path}: everybody on this machine may open it; chmod 600"
    if not path.read_text().strip():
        return f"{path}: is empty"
    return None


def adapter_problems(settings: Settings, cache: Path) -> list[str]:
    """Adapters that are not there, or do not fit their prepared model. The base and the others are served anyway."""
    problems = []
    for model in settings.models:
        for adapter in model.adapters:
            try:
                if not adapter.folder.is_dir():
                    raise SettingsError(f"adapter {adapter.name}: folder: {adapter.folder} is no folder")
                if is_prepared(model, cache):
                    checked(adapter, prepared_folder(model, cache))
            except SettingsError as e:
                problems.append(f"models.{model.name}.adapters: {e}")
    return problems


def cores_wanted(models: Sequence[Model]) -> float:
    return sum(m.engine.cores * m.engine.replicas for m in models)


def memory_wanted_gib(models: Sequence[Model], cache: Path) -> float:
    """Main memory of all CPU replicas: weights, KV cache per rank, and what every process costs."""
    total = STACK_GIB
    for model in models:
        rank = (model.engine.kv_cache_gib or 0) * model.engine.ranks
        total += model.engine.replicas * (weights_gib(model, cache) + rank + ENGINE_OVERHEAD_GIB)
    return total


def weights_gib(model: Model, cache: Path) -> float:
    """As prepared, or as they lie in the source's folder; 0 where neither is there yet."""
    folder = prepared_folder(model, cache) if is_prepared(model, cache) else model.source.folder
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) / GIB if folder else 0.0


def _model_problems(model: Model, cache: Path) -> list[str]:
    where, engine, problems = f"models.{model.name}", model.engine, []
    if model.source.repository and model.source.revision is None:
        problems.append(f"{where}.source.revision: required; name the commit (40 hex digits) that you have reviewed")
    if engine.device == "cpu" and engine.kv_cache_gib is None:
        problems.append(f"{where}.engine.kv_cache_gib: required on cpu; by default vLLM would claim nearly all memory")
    if engine.device == "cpu" and engine.pipeline_parallel_size > 1:
        problems.append(f"{where}.engine.pipeline_parallel_size: 1 on cpu; vLLM's CPU runner has no pipeline stages")
    if model.templates.prompt_file and not model.templates.prompt_file.is_file():
        problems.append(f"{where}.templates.prompt_file: there is no such file")
    problems += _source_problems(model, cache)
    try:
        problems += _shape_problems(model, _config(model, cache))
    except ValueError:
        problems.append(f"{where}.source: its config.json is no JSON")
    try:
        check_arguments(model)
    except SettingsError as e:
        problems.append(str(e))
    except ImportError:
        problems.append(f"{where}.engine.device: vLLM is not installed; install starserve[{engine.device}]")
    return problems


def _source_problems(model: Model, cache: Path) -> list[str]:
    """What of a source that lies on this machine is not there; one that is prepared is not needed any more."""
    where, source = f"models.{model.name}.source", model.source
    if is_prepared(model, cache):
        return []
    if source.folder and not source.folder.is_dir():
        return [f"{where}.folder: {source.folder} is no folder"]
    if source.package and next(gguf_files(source.package), None) is None:
        return [f"{where}.package: {source.package} is not installed, or carries no .gguf file"]
    return []


def _config(model: Model, cache: Path) -> dict[str, Any]:
    """The model's config.json, as prepared or as it lies in the source; empty where neither can be read."""
    if not is_prepared(model, cache) and model.source.package:
        positions = positions_of(model.source.package)
        return {} if positions is None else {"max_position_embeddings": positions}
    prepared, source = prepared_folder(model, cache), model.source
    folder = prepared if is_prepared(model, cache) else source.folder or downloads(source, cache)
    file = folder / "config.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _shape_problems(model: Model, config: dict[str, object]) -> list[str]:
    architectures = config.get("architectures")
    heads = config.get("num_attention_heads", config.get("n_head"))
    longest = config.get("max_position_embeddings", config.get("n_positions"))
    where, problems = f"models.{model.name}", []
    if isinstance(heads, int) and heads % model.engine.tensor_parallel_size:
        problems.append(f"{where}.engine.tensor_parallel_size: {model.engine.tensor_parallel_size} does not divide the "
                        f"model's {heads} attention heads")  # fmt: skip
    if isinstance(architectures, list) and ARCHITECTURE in architectures and not plugin_is_allowed(os.environ):
        problems.append(f"{where}: vLLM would build {ARCHITECTURE} with its own class, wrong with pipeline stages and "
                        f"adapters; install starserve, and let VLLM_PLUGINS hold {PLUGIN}")  # fmt: skip
    if isinstance(longest, int) and model.context_tokens > longest:
        problems.append(f"{where}.context_tokens: {model.context_tokens} is more than the model's {longest} positions")
    return problems
