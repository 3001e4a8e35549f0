"""Tracing with the OpenTelemetry SDK. Imported only where tracing is on (:func:`nova.tracing.open_tracing`)."""

import asyncio
import sys
import threading
import time
from collections.abc import Mapping

import structlog
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from nova import __version__
from nova.config import TracingSettings
from nova.tracing import Attribute, EndedSpan, Sink, Span, Tracer, is_traceparent

log = structlog.get_logger(__name__)
EXPORT_EVERY_MS = 1000
EXPORT_TIMEOUT_S = 5
"""For one batch, retries included; a collector that is away costs spans, never calls."""
CLOSE_S = 3.0
_SCOPE = "nova."
"""Prefix of the plane in the name of the instrumentation scope."""
_HTTP_PATH = "/v1/traces"


class SdkTracing:
    def __init__(self, settings: TracingSettings, node: str, sinks: tuple[Sink, ...]) -> None:
        resource = Resource.create(
            {
                "service.name": settings.service_name,
                "service.version": __version__,
                "host.name": node,
                "nova.node": node,
            }
        )
        sampler = ParentBasedTraceIdRatio(settings.sample_rate)
        self._ids = _Ids()
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False, id_generator=self._ids)
        batches = BatchSpanProcessor(_exporter(settings), schedule_delay_millis=EXPORT_EVERY_MS)
        self._provider.add_span_processor(batches)
        if sinks:
            self._provider.add_span_processor(_ToSinks(node, sinks))

    def tracer(self, plane: str) -> Tracer:
        return _Tracer(self._provider.get_tracer(_SCOPE + plane), self._ids)

    async def start(self) -> None:
        """Nothing to do: the exporter's thread runs since the object was made."""

    async def close(self) -> None:
        """Export what is left; a collector that does not answer is left behind after :data:`CLOSE_S`."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            try:
                loop.call_soon_threadsafe(done.set)
            except RuntimeError:
                return  # nobody waits any more

        # a daemon thread: a pool's would keep the process from ending
        threading.Thread(target=shut_down, name="tracing-shutdown", daemon=True).start()
        try:
            async with asyncio.timeout(CLOSE_S):
                await done.wait()
        except TimeoutError:
            log.warning("the trace collector does not answer; spans are lost")


def _exporter(settings: TracingSettings) -> SpanExporter:
    """Exporters bring their transports with them, so only the one that is wanted is loaded."""
    endpoint = settings.endpoint
    if settings.exporter == "stdout":
        return ConsoleSpanExporter(out=sys.stdout, formatter=lambda span: span.to_json(indent=None) + "\n")
    if settings.exporter == "otlp-http":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        url = endpoint if "://" in endpoint else f"http://{endpoint}{_HTTP_PATH}"
        return HttpExporter(url, timeout=EXPORT_TIMEOUT_S)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    return GrpcExporter(url, timeout=EXPORT_TIMEOUT_S)


class _Ids(RandomIdGenerator):
    """Random ids, but for a span whose id was told to others before it was made."""

    chosen: int | None = None

    def generate_span_id(self) -> int:
        chosen, self.chosen = self.chosen, None
        return super().generate_span_id() if chosen is None else chosen


class _Tracer:
    def __init__(self, tracer: otel.Tracer, ids: _Ids) -> None:
        self._tracer = tracer
        self._ids = ids

    def begin(self, name: str, traceparent: str | None, tracestate: str | None = None, *, began_ns: int = 0) -> Span:
        if traceparent is None or not is_traceparent(traceparent):
            parent = Context()
        elif not int(traceparent[53:55], 16) & TraceFlags.SAMPLED:
            return _Unsampled(traceparent)
        else:
            parent = _remote(traceparent, tracestate)
        span = self._tracer.start_span(
            name,
            parent,
            SpanKind.SERVER if name == "gateway.request" else SpanKind.INTERNAL,
            start_time=began_ns or time.time_ns(),
        )
        return _SdkSpan(span, self._ids)

    def record(
        self,
        name: str,
        parent: Span,
        began_ns: int,
        ended_ns: int,
        attributes: Mapping[str, Attribute],
        *,
        error: str | None = None,
        reserved: str | None = None,
    ) -> None:
        if reserved is not None:
            self._ids.chosen = int(reserved[36:52], 16)
        span = self._tracer.start_span(name, _remote(parent.traceparent, None), start_time=began_ns)
        _SdkSpan(span, self._ids).end(attributes, error=error, ended_ns=ended_ns)


def _remote(traceparent: str, tracestate: str | None) -> Context:
    context = SpanContext(
        int(traceparent[3:35], 16),
        int(traceparent[36:52], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(traceparent[53:55], 16)),
        trace_state=TraceState.from_header([tracestate]) if tracestate else None,
    )
    return otel.set_span_in_context(NonRecordingSpan(context), Context())


class _SdkSpan:
    __slots__ = ("_ids", "_span", "traceparent")

    def __init__(self, span: otel.Span, ids: _Ids) -> None:
        self._span = span
        self._ids = ids
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def sampled(self) -> bool:
        return self._span.is_recording()

    def reserve(self) -> str:
        return f"{self.traceparent[:36]}{self._ids.generate_span_id():016x}{self.traceparent[52:]}"

    def end(
        self,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        error: str | None = None,
        ended_ns: int | None = None,
    ) -> None:
        if attributes:
            self._span.set_attributes(dict(attributes))
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(ended_ns)


class _Unsampled:
    """The caller decided against this trace: the decision goes on with the context as it came."""

    __slots__ = ("traceparent",)
    sampled = False

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def reserve(self) -> str:
        return self.traceparent

    def end(
        self,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        error: str | None = None,
        ended_ns: int | None = None,
    ) -> None:
        return


class _ToSinks(SpanProcessor):
    def __init__(self, node: str, sinks: tuple[Sink, ...]) -> None:
        self._node = node
        self._sinks = sinks

    def on_end(self, span: ReadableSpan) -> None:
        context, scope = span.context, span.instrumentation_scope
        if context is None or not context.trace_flags.sampled:
            return
        ended = EndedSpan(
            trace_id=f"{context.trace_id:032x}",
            span_id=f"{context.span_id:016x}",
            parent_id=f"{span.parent.span_id:016x}" if span.parent is not None else None,
            name=span.name,
            plane=scope.name.removeprefix(_SCOPE) if scope is not None else "",
            node=self._node,
            began_ns=span.start_time or 0,
            ended_ns=span.end_time or 0,
            error=(span.status.description or "error") if span.status.status_code is StatusCode.ERROR else None,
            attributes=dict(span.attributes or {}),
        )
        for sink in self._sinks:
            sink(ended)
