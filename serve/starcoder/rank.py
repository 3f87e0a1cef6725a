"""One rank of a model, built by vLLM on the meta device, alone: what its weights will weigh, without a GPU.

`python -m serve.starcoder.rank FOLDER TP…` prints a line of JSON for each tensor-parallel size. A process of its own,
because vLLM's parallel state belongs to a process, and because the other ranks are only claimed to be there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Rank(NamedTuple):
    """The first of `tensor_parallel_size` ranks, all alike: the class that builds it, and the bytes of its weights."""

    tensor_parallel_size: int
    model_class: str
    weight_bytes: int


def ranks(folder: Path, sizes: Sequence[int], environment: Mapping[str, str] | None = None) -> list[Rank]:
    """One rank per tensor-parallel size, of the model whose config.json is in `folder`; weights are not needed."""
    command = [sys.executable, "-m", "serve.starcoder.rank", str(folder), *map(str, sizes)]
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **quiet, **(environment or {})}
    )
    return [Rank(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def _build(folder: Path, size: int) -> Rank:
    import torch
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    arguments = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
        tensor_parallel_size=size, distributed_executor_backend="mp",
    )  # fmt: skip
    config = arguments.create_engine_config()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    with set_current_vllm_config(config):
        init_distributed_environment(size, 0, "fake://", 0, "fake")
        initialize_model_parallel(size, 1)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            model = initialize_model(vllm_config=config)
    built = type(model)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    cleanup_dist_env_and_memory()
    return Rank(size, f"{built.__module__}:{built.__qualname__}", weight_bytes)


def _claim_the_other_ranks() -> None:
    """Let every group of ranks be torch's fake one, which needs no peers, and let nobody wait for messages."""
    import torch
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    new_group: Any = torch.distributed.new_group

    def fake(ranks: Any = None, timeout: Any = None, backend: Any = None, **others: Any) -> Any:
        return new_group(ranks, backend="fake")

    alone: list[tuple[Any, str, Any]] = [
        (torch.distributed, "new_group", fake),
        (CpuCommunicator, "_all_group_ranks_share_shm_group_name", lambda _: False),
        (MessageQueue, "create_from_process_group", staticmethod(lambda *_, **__: None)),
    ]
    for owner, name, replacement in alone:
        assert hasattr(owner, name), "vLLM has changed: read this file again"
        setattr(owner, name, replacement)


if __name__ == "__main__":
    _claim_the_other_ranks()
    for size in sys.argv[2:]:
        print(json.dumps(_build(Path(sys.argv[1]), int(size))), flush=True)
