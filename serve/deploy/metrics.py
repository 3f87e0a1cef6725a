"""Records of requests as Prometheus metrics, through Ray's own metrics port. Ray puts `ray_` before each name."""

from __future__ import annotations

from ray.util.metrics import Counter, Histogram

from serve.words import Record

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]
_TPOT_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0]


class RequestMetrics:
    """Counts and times of all requests of one router. Labels come from closed sets: no text, no ids of requests."""

    def __init__(self) -> None:
        who = ("model", "tenant")
        self._requests = Counter(
            "starserve_requests",
            "Requests that ended, refused ones too.",
            ("model", "tenant", "form", "outcome", "code"),
        )
        self._prompt_tokens = Counter("starserve_prompt_tokens", "Prompt tokens of admitted requests.", who)
        self._cached_tokens = Counter("starserve_cached_tokens", "Prompt tokens that the prefix cache had.", who)
        self._output_tokens = Counter("starserve_output_tokens", "Tokens made, of broken-off answers too.", who)
        self._ttft_s = Histogram("starserve_ttft_seconds", "Time to first token.", _SECONDS, ("model",))
        self._tpot_s = Histogram("starserve_tpot_seconds", "Time per output token.", _TPOT_SECONDS, ("model",))
        self._queue_s = Histogram("starserve_queue_seconds", "Wait for the engine's first step.", _SECONDS, ("model",))
        self._request_s = Histogram("starserve_request_seconds", "Whole duration.", _SECONDS, ("model",))

    def __call__(self, record: Record) -> None:
        model = {"model": record.model or ""}
        who = {**model, "tenant": record.tenant_id or ""}
        self._requests.inc(1, {**who, "form": record.form, "outcome": record.outcome, "code": record.code or ""})
        for counter, tokens in (
            (self._prompt_tokens, record.prompt_tokens),
            (self._cached_tokens, record.cached_tokens),
            (self._output_tokens, record.output_tokens),
        ):
            if tokens:  # Ray's counters refuse 0
                counter.inc(tokens, who)
        for histogram, seconds in (
            (self._ttft_s, record.ttft_s), (self._tpot_s, record.tpot_s), (self._queue_s, record.queue_s),
        ):  # fmt: skip
            if seconds is not None:
                histogram.observe(seconds, model)
        if record.model:
            self._request_s.observe(record.duration_s, model)
