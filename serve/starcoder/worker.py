"""Mixed into vLLM's workers: each rank tells which class it has really built."""

from __future__ import annotations

from typing import Any

EXTENSION = "serve.starcoder.worker.Report"  # vLLM's `worker_extension_cls`


class Report:
    """`collective_rpc("starserve_report")` asks every rank."""

    model_runner: Any

    def starserve_report(self) -> str:
        """The class of this rank's model, as `module:name`."""
        built = type(self.model_runner.get_model())
        return f"{built.__module__}:{built.__qualname__}"
