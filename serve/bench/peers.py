"""Other stacks as rungs of the ladder: LiteLLM in front of vLLM's server, and Ray Serve LLM.

Each lives in an environment of its own, which `loadtest/peers/setup` of a checkout makes.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve.bench.rungs import Rung, free_port, started
from serve.engines.arguments import engine_arguments, engine_environment
from serve.model_settings import Model
from serve.settings import Settings, SettingsError

# Arguments of ours that the launcher gives itself, or that need this package beside the engine.
_NOT_FOR_RAY = {"model", "served_model_name", "worker_extension_cls", "enable_log_requests"}
RAY_LLM: Mapping[str, Sequence[str]] = {
    "Ray Serve LLM": (),  # as shipped: chunks of 50 ms
    "Ray Serve LLM, uncoalesced": ("--interval-ms", "0"),
    "Ray Serve LLM, direct": ("--direct",),  # what its documentation advises for throughput
}


def check(peers: Path) -> None:
    """Raises SettingsError that says what to do where the environments are not there."""
    for python in (_python(peers, "ray-llm"), _python(peers, "litellm")):
        if not python.exists():
            raise SettingsError(f"{python}: is not there; run {peers / 'setup'} first")


@contextmanager
def lite_llm(settings: Settings, peers: Path, server: Rung) -> Iterator[Rung]:
    """LiteLLM's proxy with a key, as its documentation advises for production, without a database."""
    (model,) = settings.models
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    behind = {"model": f"text-completion-openai/{model.name}", "api_base": f"{server.address}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": model.name, "litellm_params": behind}],
        "litellm_settings": {"request_timeout": 600, "set_verbose": False},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    environment = {"LITELLM_MASTER_KEY": key, "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR",
                   "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                   # It gives an answer up that repeats a chunk 100 times, as a tiny random model does.
                   "REPEATED_STREAMING_CHUNK_LIMIT": str(1 << 30)}  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)
        file.flush()
        command = [str(_python(peers, "litellm").parent / "litellm"), "--config", file.name, "--host", "127.0.0.1",
                   "--port", str(port), "--num_workers", "1"]  # fmt: skip
        health = "/health/liveliness"
        with started("LiteLLM, vLLM's server", command, port=port, health=health, environment=environment) as rung:
            rung.key, rung.behind = key, server
            yield rung


@contextmanager
def ray_llm(settings: Settings, folder: Path, peers: Path, name: str) -> Iterator[Rung]:
    """One of RAY_LLM. Its engine is the vLLM that it is pinned to, with the same arguments as ours."""
    (model,) = settings.models
    port = free_port()
    command = [str(_python(peers, "ray-llm")), str(peers / "ray_llm.py"), str(folder), str(port), "--name", model.name,
               "--engine", json.dumps(_engine(model, folder)), *RAY_LLM[name]]  # fmt: skip
    environment = engine_environment(model)
    with started(name, command, port=port, says="ready", environment=environment) as rung:
        yield rung


def _engine(model: Model, folder: Path) -> dict[str, object]:
    given = engine_arguments(model, folder, {}, dummy=False)
    return {name: value for name, value in given.items() if name not in _NOT_FOR_RAY}


def _python(peers: Path, peer: str) -> Path:
    return peers.absolute().parent.parent / ".venv-peers" / peer / "bin" / "python"
