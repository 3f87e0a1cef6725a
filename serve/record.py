"""What is told of a request when it has ended. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from serve.words import Form


@dataclass(slots=True)
class Record:
    """What may be told of a request when it has ended: ids, counts and times, never text. One per request.

    Logs, metrics and traces are readers of it and know nothing else.
    """

    request_id: str  # ours: the reply's id, and the stem of the jobs' ids in engines and vLLM
    form: Form
    client_request_id: str  # the client's X-Request-Id, or the one that it got
    tenant_id: str | None = None
    key_id: str | None = None
    model: str | None = None
    stream: bool | None = None
    outcome: str = "cancelled"  # done, refused, failed, lost, cancelled
    code: str | None = None  # the error's code
    error: str | None = None  # the class of an unforeseen error
    # What engines are known to have read, found cached and made: nothing until a job's first event says so.
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queue_s: float | None = None
    ttft_s: float | None = None  # from the parsed request to the first event
    duration_s: float = 0.0
    # What only the ledger wants to know besides; None: not known, or not yet.
    opened_s: float | None = None  # unix seconds: when its row was opened
    organisation_id: str | None = None
    adapter: str | None = None
    template: str | None = None
    jobs: int | None = None  # their ids are f"{request_id}-{i}"
    computed_prompt_tokens: int | None = None  # by engines, without what was cached; again after a failover
    cost: int | None = None  # millionths of the deployment's currency
    router: str | None = None
    engine: str | None = None  # the replica that answered; the last one after a failover

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.duration_s - self.ttft_s) / (self.output_tokens - 1)
