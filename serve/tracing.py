"""Spans of a request, router → queue → engine, to an OpenTelemetry collector. Off unless the YAML names one.

W3C `traceparent` comes in from the client and goes on to the engine with the job. A span holds what a record holds:
ids, counts and times, never text. OpenTelemetry is imported only when tracing is on; it is the extra `otel`.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from serve.record import Record
from serve.settings import Tracing
from serve.words import Start

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_NS = 1_000_000_000


class Traces:
    """Makes the spans of one process. `service` names it: router or engine."""

    def __init__(self, settings: Tracing, service: str) -> None:
        self._tracer: Tracer | None = _tracer(settings, service) if settings.endpoint else None

    def request(self, traceparent: str | None) -> RequestSpan:
        """Begin the router's span, below the client's if there is one."""
        if self._tracer is None:
            return RequestSpan(None)
        from opentelemetry.trace import SpanKind

        return RequestSpan(self._tracer.start_span("starserve.request", _context(traceparent), kind=SpanKind.SERVER))

    def job(self, traceparent: str | None) -> JobSpans:
        """Begin the engine's spans, below the router's."""
        return JobSpans(self._tracer, traceparent)


class RequestSpan:
    """The router's part. Ending it twice does nothing."""

    def __init__(self, span: Span | None) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """What the engine continues; None when tracing is off."""
        if self._span is None:
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, record: Record) -> None:
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        for name, value in asdict(record).items():
            if value is not None:
                self._span.set_attribute(f"starserve.{name}", value)
        if record.outcome in ("failed", "lost"):
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class JobSpans:
    """The engine's part: a span for the wait, known when the first event comes, and one for the work."""

    def __init__(self, tracer: Tracer | None, traceparent: str | None) -> None:
        self._tracer, self._traceparent = tracer, traceparent
        self._arrived_ns, self._queued_ns = time.time_ns(), 0

    def started(self, start: Start) -> None:
        self._queued_ns = int(start.queue_s * _NS)

    def end(self, output_tokens: int) -> None:
        if self._tracer is None or self._traceparent is None:
            return
        context, begun_ns = _context(self._traceparent), self._arrived_ns + self._queued_ns
        self._tracer.start_span("starserve.queue", context, start_time=self._arrived_ns).end(begun_ns)
        work = self._tracer.start_span("starserve.engine", context, start_time=begun_ns)
        work.set_attribute("starserve.output_tokens", output_tokens)
        work.end()


def _tracer(settings: Tracing, service: str) -> Tracer:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        resource=Resource.create({"service.name": f"starserve-{service}"}),
    )
    exporter = OTLPSpanExporter(endpoint=settings.endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=settings.export_every_s * 1000))
    return provider.get_tracer("starserve")


def _context(traceparent: str | None) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {})
