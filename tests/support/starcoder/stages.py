"""What vLLM's CPU runner (0.32) lacks for pipeline stages; its GPU runner has it."""

from __future__ import annotations

from typing import Any

from serve.starcoder.worker import Report


class Stage(Report):
    def starserve_report(self) -> str:
        self._give_room_for_hidden_states()
        return super().starserve_report()

    def _give_room_for_hidden_states(self) -> None:
        runner: Any = self.model_runner
        if runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )
