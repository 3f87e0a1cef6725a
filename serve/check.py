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
from serve.engines.arguments import check_arguments
from serve.model_settings import Model
from serve.settings import Settings, SettingsError
from serve.starcoder import ARCHITECTURE, PLUGIN, plugin_is_allowed
from serve.weights.adapters import checked
from serve.weights.manifest import is_prepared, prepared_folder

ENGINE_OVERHEAD_GIB = 2.0  # of one engine beyond weights and KV cache: Python, torch, activations
STACK_GIB = 2.0  # Ray, router, HAProxy
PREPARED_GIB = 2.0  # disk that an unprepared embedded model wants


def machine_problems(settings: Settings, cache: Path) -> list[str]:
    """What this machine lacks, each with what to do. Empty when it will do."""
    problems = []
    if sys.version_info[:2] != (3, 11):
        problems.append(
            f"Python {platform.python_version()}: starserve runs on Python 3.11; make .venv with python3.11"
        )
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        problems.append(f"{platform.system()} on {platform.machine()}: starserve runs on Linux on x86_64")
    cpu = [m for m in settings.models if m.engine.device == "cpu"]
    cores, memory = cores_wanted(cpu), memory_wanted_gib(cpu, cache)
    if cores > (os.cpu_count() or 1):
        problems.append(f"engine.cores: all engines together want {cores:g} cores, this machine has {os.cpu_count()}; "
                        "lower engine.cores or engine.replicas")  # fmt: skip
    for model in cpu if not eight_bits.exact(eight_bits.CPUINFO.read_text()) else ():
        if is_prepared(model, cache) and eight_bits.multiplies_them(_config(model, cache)):
            problems.append(f"models.{model.name}: weights and activations are 8-bit integers, which this processor "
                            "multiplies inexactly (no VNNI); the answers would be wrong")  # fmt: skip
    free = psutil.virtual_memory().available / (1 << 30)
    if cpu and memory > free:
        problems.append(f"memory: the engines and their routers want {memory:.1f} GiB, {free:.1f} GiB are free; "
                        "lower engine.kv_cache_gib or engine.replicas")  # fmt: skip
    place = next(p for p in (cache, *cache.parents) if p.exists())
    disk = shutil.disk_usage(place).free / (1 << 30)
    if any(not is_prepared(m, cache) for m in settings.models) and disk < PREPARED_GIB:
        problems.append(f"disk: preparing a model wants {PREPARED_GIB:g} GiB, {disk:.1f} GiB are free; "
                        "set STARSERVE_CACHE to a larger disk")  # fmt: skip
    return problems


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
    """Adapters that do not fit their prepared model. The base and the other adapters are served all the same."""
    problems = []
    for model in settings.models:
        for adapter in model.adapters if is_prepared(model, cache) else ():
            try:
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
        weights = sum(f.stat().st_size for f in prepared_folder(model, cache).glob("*.safetensors")) / (1 << 30)
        rank = (model.engine.kv_cache_gib or 0) * model.engine.ranks
        total += model.engine.replicas * (weights + rank + ENGINE_OVERHEAD_GIB)
    return total


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
    if is_prepared(model, cache):
        problems += _shape_problems(model, _config(model, cache))
    try:
        check_arguments(model)
    except SettingsError as e:
        problems.append(str(e))
    except ImportError:
        problems.append(f"{where}.engine.device: vLLM is not installed; install starserve[{engine.device}]")
    return problems


def _config(model: Model, cache: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((prepared_folder(model, cache) / "config.json").read_text())
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
