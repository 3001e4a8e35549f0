"""Traces: what every hop needs to know of them, and nothing that costs when they are off.

A hop asks a :class:`Tracer` (None when ``tracing.enabled`` is false) for a :class:`Span` and hands the span's ``traceparent``
on to the next hop. Contexts travel as text (W3C Trace Context), within a process as between two, so that a hop never has
to know where its caller runs. The SDK behind it is loaded by :func:`open_tracing`, and only then.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nova.config import TracingSettings

Attribute = str | int | float | bool
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class Span(Protocol):
    """One hop of one call. ``traceparent`` is what the next hop gets, whether the call is sampled or not."""

    @property
    def traceparent(self) -> str: ...

    @property
    def sampled(self) -> bool:
        """False: nobody will see it, so attributes need not be put together."""
        ...

    def reserve(self) -> str:
        """The ``traceparent`` of a span below this one whose times are not known yet; :meth:`Tracer.record` makes it."""
        ...

    def end(
        self,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        error: str | None = None,
        ended_ns: int | None = None,
    ) -> None:
        """``ended_ns`` is Unix time; None is now. ``error`` says what went wrong. Once; never blocks, never raises."""
        ...


class Tracer(Protocol):
    def begin(self, name: str, traceparent: str | None, tracestate: str | None = None, *, began_ns: int = 0) -> Span:
        """A span below ``traceparent``, whose sampling flag decides; without a parent ``tracing.sample_rate`` does.

        ``began_ns`` is Unix time; 0 is now.
        """
        ...

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
        """A span that is over, below a sampled ``parent``; with the id that :meth:`Span.reserve` gave, or one of its own."""
        ...


@dataclass(frozen=True, slots=True)
class EndedSpan:
    """A sampled span as sinks get it. Times are Unix time in nanoseconds; ids are hexadecimal."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    plane: str
    node: str
    began_ns: int
    ended_ns: int
    error: str | None
    attributes: Mapping[str, Any] = field(default_factory=dict)


Sink = Callable[[EndedSpan], None]
"""Must not block and must not raise."""


class Tracing(Protocol):
    """Of one process. Closing it exports what is left, within a few seconds."""

    def tracer(self, plane: str) -> Tracer: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...


def open_tracing(settings: TracingSettings, *, node: str, sinks: tuple[Sink, ...] = ()) -> Tracing | None:
    """The process's way to trace; None when it is off. ``sinks`` get every span that is exported."""
    if not settings.enabled:
        return None
    from nova.tracing_sdk import SdkTracing  # takes tens of milliseconds and MiB

    return SdkTracing(settings, node, sinks)


def is_traceparent(text: str) -> bool:
    """Is it a header of W3C Trace Context, of this or a later version?"""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_id(traceparent: str | None) -> str | None:
    """The 32 digits that name the trace."""
    return traceparent[3:35] if traceparent and len(traceparent) >= 55 else None
