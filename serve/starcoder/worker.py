"""Mixed into vLLM's workers: each rank tells which class it has really built, and which adapters it refuses."""

from __future__ import annotations

from typing import Any

EXTENSION = "serve.starcoder.worker.Report"  # vLLM's `worker_extension_cls`


class Report:
    """`collective_rpc("starserve_report")` asks every rank."""

    model_runner: Any  # of vLLM's own worker, as is the next
    add_lora: Any

    def starserve_report(self) -> str:
        """The class of this rank's model, as `module:name`."""
        built = type(self.model_runner.get_model())
        return f"{built.__module__}:{built.__qualname__}"

    def starserve_load_adapter(self, name: str, place: int, folder: str) -> str:
        """Why this rank refuses an adapter; empty where it has loaded it.

        It must not raise: vLLM (0.32) stops reading at the first rank that fails, and takes what the others have
        replied for their replies to the calls after.
        """
        from vllm.lora.request import LoRARequest

        try:
            self.add_lora(LoRARequest(name, place, folder))
        except Exception as e:
            return f"{type(e).__name__}: {' '.join(str(e).split())}"
        return ""
