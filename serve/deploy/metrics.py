"""Records of requests as Prometheus metrics, through Ray's own metrics port. Ray puts `ray_` before each name."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from serve.engines.receipts import Receipts
from serve.engines.turns import Turns
from serve.ledger.ledger import Counters
from serve.limitstore.breaker import LossEvent
from serve.lines import Counts
from serve.record import Record
from serve.words import Band

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]
OTHER_TENANTS = "_other"  # no tenant's id: those begin with a letter or a digit
_TPOT_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0]


class _Tenants:
    """Labels for the first so many tenants; those that come later share one, so that series stay bounded."""

    def __init__(self, most: int) -> None:
        self._most, self._known = most, set[str]()

    def label(self, tenant_id: str | None) -> str:
        if not tenant_id or tenant_id in self._known:
            return tenant_id or ""
        if len(self._known) >= self._most:
            return OTHER_TENANTS
        self._known.add(tenant_id)
        return tenant_id


class RequestMetrics:
    """Counts and times of all requests of one router. Labels come from closed sets: no text, no ids of requests."""

    def __init__(self, tenants: int) -> None:
        """`tenants`: how many have series of their own."""
        self._tenants = _Tenants(tenants)
        who = ("model", "tenant")
        self._requests = Counter(
            "starserve_requests",
            "Requests that ended, refused ones too.",
            ("model", "tenant", "form", "outcome", "code"),
        )
        self._prompt_tokens = Counter("starserve_prompt_tokens", "Prompt tokens that engines read.", who)
        self._cached_tokens = Counter("starserve_cached_tokens", "Prompt tokens that the prefix cache had.", who)
        self._output_tokens = Counter("starserve_output_tokens", "Tokens made, of broken-off answers too.", who)
        self._ttft_s = Histogram("starserve_ttft_seconds", "Time to first token.", _SECONDS, who)
        self._tpot_s = Histogram("starserve_tpot_seconds", "Time per output token.", _TPOT_SECONDS, who)
        self._queue_s = Histogram("starserve_queue_seconds", "Wait for the engine's first step.", _SECONDS, who)
        self._request_s = Histogram("starserve_request_seconds", "Whole duration.", _SECONDS, ("model",))

    def __call__(self, record: Record) -> None:
        model = {"model": record.model or ""}
        who = {**model, "tenant": self._tenants.label(record.tenant_id)}
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
                histogram.observe(seconds, who)
        if record.model:
            self._request_s.observe(record.duration_s, model)


class QueueMetrics:
    """The fair queue of one engine replica."""

    def __init__(self, model: str) -> None:
        self._model = {"model": model}
        self._waiting = Gauge("starserve_queue_jobs", "Jobs that wait for their turn.", ("model",))
        self._at_work = Gauge("starserve_engine_sequences", "Sequences that the engine works on.", ("model",))
        self._service = Gauge(
            "starserve_engine_service", "Speed while at work: prompt tokens plus twice output tokens, per second.",
            ("model",),
        )  # fmt: skip
        self._evenness = Gauge(
            "starserve_fair_share_jain", "Jain's index of service by weight over tenants that waited all the time.",
            ("model",),
        )  # fmt: skip

        self._made = Counter(
            "starserve_engine_output_tokens", "Tokens that the engine handed out: what routers must account for.",
            ("model",),
        )  # fmt: skip
        self._moved = Counter("starserve_queue_moved", "Jobs given back so that another replica answers.", ("model",))
        self._told = self._told_moved = 0

    def __call__(self, turns: Turns, receipts: Receipts) -> None:
        if (made := receipts.output_tokens) > self._told:
            self._made.inc(made - self._told, self._model)
            self._told = made
        if turns.moved > self._told_moved:
            self._moved.inc(turns.moved - self._told_moved, self._model)
            self._told_moved = turns.moved
        self._waiting.set(turns.waiting, self._model)
        self._at_work.set(turns.at_work, self._model)
        if (speed := turns.service_per_s) is not None:
            self._service.set(speed, self._model)
        if (evenness := turns.evenness()) is not None:
            self._evenness.set(evenness, self._model)


class LimitMetrics:
    """What happens while the shared store of limits is lost."""

    def __init__(self) -> None:
        self._events = Counter(
            "starserve_limit_store_events", "Calls lost, requests passed or refused without the store, charges kept.",
            ("event", "band"),
        )  # fmt: skip

    def __call__(self, event: LossEvent, band: Band) -> None:
        self._events.inc(1, {"event": event, "band": band})


class LedgerMetrics:
    """Of one router's ledger. Whatever is lost is counted, and should stay 0."""

    def __init__(self) -> None:
        self._open = Gauge("starserve_ledger_open", "Rows of requests that have not ended.")
        self._waiting = Gauge("starserve_ledger_waiting_lines", "Lines in memory that a full disk did not take yet.")
        self._unshipped = Gauge("starserve_ledger_unshipped_bytes", "Journal that is not in the database yet.")
        self._lost = Gauge("starserve_ledger_lost_lines", "Lines that neither disk nor database took.")
        self._outage_s = Gauge("starserve_ledger_outage_seconds", "How long the database did not take rows.")

    def __call__(self, counters: Counters) -> None:
        self._open.set(counters.open)
        self._waiting.set(counters.waiting)
        self._unshipped.set(counters.unshipped_bytes)
        self._lost.set(counters.unwritten + counters.rejected)
        self._outage_s.set(counters.outage_s)


class LogMetrics:
    """Of one router's logs, while they cannot be written. What is lost should stay 0."""

    def __init__(self) -> None:
        self._waiting = Gauge(
            "starserve_log_waiting_lines", "Lines that wait in memory for room on the disk.", ("log",)
        )
        self._lost = Gauge("starserve_log_lost_lines", "Lines that neither disk nor memory took.", ("log",))

    def __call__(self, **logs: Counts) -> None:
        for log, counts in logs.items():
            self._waiting.set(counts.waiting, {"log": log})
            self._lost.set(counts.lost, {"log": log})
