"""Mixed into vLLM's workers: each rank tells what it has really built."""

from __future__ import annotations

from typing import Any

EXTENSION = "serve.starcoder.worker.Report"  # vLLM's `worker_extension_cls`


class Report:
    """`collective_rpc("starserve_report")` asks every rank."""

    model_runner: Any

    def starserve_report(self) -> tuple[str, int]:
        """The class of this rank's model, as `module:name`, and the bytes of its weights."""
        model = self.model_runner.get_model()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        return f"{type(model).__module__}:{type(model).__qualname__}", weights
