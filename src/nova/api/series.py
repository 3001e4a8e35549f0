"""Numbers over time: buckets for charts, days and hours for a heatmap, and the spans of one trace."""

from datetime import date, datetime
from typing import Any

from pydantic import Field

from nova.api.table import BY_HANDLER, Model, Plane, Route
from nova.domain.names import NAME

MAX_POINTS = 1500
MAX_WEEKS = 104
SPAN = r"^[1-9][0-9]{0,4}[mhd]$"
TRACE = r"^([0-9a-f]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})$"


class SeriesQuery(Model):
    """``range`` and ``step`` in minutes, hours or days (``90m``, ``24h``, ``7d``); at most 1500 steps in a range.

    Steps begin at multiples of themselves in UTC. Steps that are no whole hours reach back as far as
    ``retention.metrics_minute_days``, others as far as ``retention.metrics_hour_days``.
    """

    range: str = Field("24h", pattern=SPAN, description="how far back from now")
    step: str = Field("1h", pattern=SPAN, description="length of a bucket")
    function: str | None = Field(
        None, pattern=NAME, description="of this function only; otherwise of the whole namespace"
    )


class Bucket(Model):
    """The calls that ended from ``ts`` on, for one step. Latencies in milliseconds, null when there was no call.

    ``p95_duration_ms`` is within 5 % of the exact value.
    """

    ts: datetime
    invocations: int
    errors: int
    cold_starts: int
    avg_duration_ms: float | None
    p95_duration_ms: float | None


class TimeSeries(Model):
    """``points`` are oldest first and without gaps; the last one is not over yet."""

    function: str | None
    range: str
    step: str
    points: list[Bucket]


class HeatmapQuery(Model):
    weeks: int = Field(52, ge=1, le=MAX_WEEKS, description="how far back")
    timezone: str = Field("UTC", min_length=1, max_length=64, description="IANA name, whose days and hours count")


class HeatmapDay(Model):
    """The calls of one day; ``hours`` has 24 counts. An hour of UTC counts where it begins."""

    date: date
    invocations: int
    errors: int
    hours: list[int]


class Heatmap(Model):
    """``days`` are oldest first and without gaps, up to today.

    ``kept_from`` is where the numbers begin: weeks ago, or as far back as ``retention.metrics_hour_days`` reaches.
    """

    function: str | None
    timezone: str
    kept_from: date
    days: list[HeatmapDay]


class Span(Model):
    """One hop of a call. ``offset_ms`` counts from the beginning of the trace's first span.

    ``parent_id`` is null for a span that has no parent here; ``remote_parent_id`` then names the caller's own, if there is one.
    """

    span_id: str
    parent_id: str | None
    remote_parent_id: str | None
    name: str
    plane: str
    node: str
    started_at: datetime
    offset_ms: float
    duration_ms: float
    error: str | None
    request_id: str | None
    function: str | None
    attributes: dict[str, Any]
    children: list["Span"]


class Trace(Model):
    """``spans`` are those without a parent here, oldest first; the others are their ``children``."""

    trace_id: str
    started_at: datetime
    duration_ms: float
    span_count: int
    spans: list[Span]


ROUTES = (
    Route(
        op="metrics.timeseries",
        method="GET",
        path="/metrics/timeseries",
        summary="Calls, errors, cold starts and latencies over time, bucket by bucket",
        plane=Plane.EXECUTION,
        permission="metrics:read",
        query=SeriesQuery,
        answer=TimeSeries,
        resource=BY_HANDLER,
        tag="metrics",
    ),
    Route(
        op="metrics.heatmap",
        method="GET",
        path="/metrics/heatmap",
        summary="Calls of the whole namespace by day and hour",
        plane=Plane.EXECUTION,
        permission="metrics:read",
        query=HeatmapQuery,
        answer=Heatmap,
        resource=None,
        tag="metrics",
    ),
    Route(
        op="function.heatmap",
        method="GET",
        path="/functions/{name}/heatmap",
        summary="Calls of a function by day and hour",
        plane=Plane.EXECUTION,
        permission="metrics:read",
        query=HeatmapQuery,
        answer=Heatmap,
        tag="metrics",
    ),
    Route(
        op="trace.get",
        method="GET",
        path="/traces/{id}",
        summary="The spans of one call as a tree; by trace id or request id",
        plane=Plane.EXECUTION,
        permission="log:read",
        answer=Trace,
        resource=BY_HANDLER,
        tag="traces",
    ),
)
