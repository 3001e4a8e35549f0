"""The platform itself: health, metrics, pool figures, configuration, its own API description."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, RootModel

from nova.api.table import BY_HANDLER, Kind, Model, Plane, Route

Standing = Literal["ok", "degraded", "down"]


class Probe(Model):
    """The answer of a probe. ``reason`` says what is missing when it is not ``ok``."""

    status: Standing
    reason: str | None = None


class PostgresHealth(Model):
    ok: bool
    latency_ms: float | None = None


class PoolHealth(Model):
    pools: int
    instances: int
    busy: int
    queued: int


class Health(Model):
    """``version`` and all that follows only for callers with ``metrics:read``."""

    status: Standing
    version: str | None = None
    uptime_s: float | None = None
    postgres: PostgresHealth | None = None
    pool: PoolHealth | None = None
    planes: dict[str, Standing] | None = None


class CallTotals(Model):
    """Counts since this process started; latencies in milliseconds, 0 before the first call."""

    total_invocations: int
    success_invocations: int
    failed_invocations: int
    cold_starts: int
    warm_starts: int
    total_latency_ms: float
    min_latency_ms: float
    max_latency_ms: float


class Metrics(CallTotals):
    """Totals of what the caller may see; ``functions``, by name, are those of the scope that the request names."""

    vms_created: int
    vms_stopped: int
    vms_crashed: int
    snapshots_hit: int
    uptime_s: float
    functions: dict[str, CallTotals]


class RangeQuery(Model):
    range: str = Field("1h", pattern=r"^[1-9][0-9]{0,4}[mhd]$", description="minutes, hours or days back from now")


class RangeFigures(Model):
    """Figures over recorded calls; latencies in milliseconds, null when there was no call."""

    calls: int
    success: int
    failed: int
    cold: int
    warm: int
    avg_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class VersionFigures(RangeFigures):
    version: int


class FunctionMetrics(RangeFigures):
    """``since_start`` are the counters of this process, which no retention touches."""

    function: str
    range: str
    since: datetime
    until: datetime
    versions: list[VersionFigures]
    since_start: CallTotals


class InstanceCounts(Model):
    """``instances`` = booting + idle + busy + draining + stopping. ``inflight`` calls run, ``queue_depth`` calls wait."""

    instances: int
    booting: int
    idle: int
    busy: int
    draining: int
    stopping: int
    inflight: int
    queue_depth: int


class PoolStats(InstanceCounts):
    """The instances of one function version."""

    tenant: str
    namespace: str
    function: str
    version: int


class Stats(InstanceCounts):
    """Totals of what the caller may see, and one entry per pool. ``active_vms`` counts instances that hold memory."""

    active_vms: int
    total_pools: int
    pools: list[PoolStats]


class Setting(Model):
    """One setting. A secret that is set shows as ``***``. ``hot``: may be changed while the platform runs."""

    value: Any
    default: Any
    source: Literal["flag", "env", "db", "file", "default"]
    hot: bool
    secret: bool


class SettingsView(RootModel[dict[str, Setting]]):
    """Every setting by its dotted key."""


class SettingsChange(RootModel[dict[str, Any]]):
    """New values by dotted key; all are taken or none."""


class SettingsSchema(Model):
    """A JSON Schema: ``properties`` has one schema for each dotted key."""

    type: Literal["object"]
    properties: dict[str, Any]
    defs: dict[str, Any] = Field(serialization_alias="$defs")


def _probe(op: str, path: str, summary: str) -> Route:
    return Route(
        op=op,
        method="GET",
        path=path,
        summary=summary,
        plane=Plane.OBSERVABILITY,
        permission=None,
        answer=Probe,
        resource=None,
        tag="health",
    )


_LIVE = "The process runs and its loop turns"
_READY = "Calls can be taken; 503 while PostgreSQL does not answer or the server drains"
_STARTUP = "PostgreSQL is reachable and its schema is current; 503 until then"

HEALTH_ROUTES = (
    Route(
        op="health.get",
        method="GET",
        path="/health",
        summary="Health of the platform and its parts; 503 when it is down",
        plane=Plane.OBSERVABILITY,
        permission=None,
        answer=Health,
        resource=None,
        tag="health",
    ),
    _probe("health.live", "/health/live", _LIVE),
    _probe("health.ready", "/health/ready", _READY),
    _probe("health.startup", "/health/startup", _STARTUP),
    _probe("live", "/live", _LIVE),
    _probe("ready", "/ready", _READY),
    _probe("startup", "/startup", _STARTUP),
)

METRICS_ROUTES = (
    Route(
        op="metrics.get",
        method="GET",
        path="/metrics",
        summary="Counters since start as JSON, or as Prometheus text when Accept asks for it",
        plane=Plane.OBSERVABILITY,
        permission="metrics:read",
        answer=Metrics,
        kind=Kind.ASGI,
        resource=None,
        tag="metrics",
    ),
    Route(
        op="metrics.prometheus",
        method="GET",
        path="/metrics/prometheus",
        summary="Every series in Prometheus text format",
        plane=Plane.OBSERVABILITY,
        permission="metrics:read",
        kind=Kind.ASGI,
        resource=None,
        tag="metrics",
    ),
    Route(
        op="function.metrics",
        method="GET",
        path="/functions/{name}/metrics",
        summary="Calls, failures, cold starts and latencies of a function over a range",
        plane=Plane.EXECUTION,
        permission="metrics:read",
        query=RangeQuery,
        answer=FunctionMetrics,
        tag="metrics",
    ),
    Route(
        op="stats.get",
        method="GET",
        path="/stats",
        summary="Instances, running and waiting calls, per function and version",
        plane=Plane.EXECUTION,
        permission="metrics:read",
        answer=Stats,
        resource=BY_HANDLER,
        tag="metrics",
    ),
)

CONFIG_ROUTES = (
    Route(
        op="config.get",
        method="GET",
        path="/config",
        summary="Every setting with its value and where that came from",
        plane=Plane.CONTROL,
        permission="config:read",
        answer=SettingsView,
        resource=None,
        platform=True,
        scoped=False,
        tag="config",
    ),
    Route(
        op="config.set",
        method="POST",
        path="/config",
        summary="Change hot settings; every process follows within a second",
        plane=Plane.CONTROL,
        permission="config:write",
        audit="config.update",
        body=SettingsChange,
        answer=SettingsView,
        resource=None,
        platform=True,
        scoped=False,
        tag="config",
    ),
    Route(
        op="config.schema",
        method="GET",
        path="/config/schema",
        summary="Types, limits and meaning of the settings",
        plane=Plane.CONTROL,
        permission="config:read",
        answer=SettingsSchema,
        resource=None,
        platform=True,
        scoped=False,
        tag="config",
    ),
    Route(
        op="config.unset",
        method="DELETE",
        path="/config/{key}",
        summary="Forget a changed setting: back to the file or the default",
        plane=Plane.CONTROL,
        permission="config:write",
        audit="config.delete",
        status=204,
        resource=None,
        platform=True,
        scoped=False,
        tag="config",
    ),
)

DESCRIPTION_ROUTES = (
    Route(
        op="openapi.get",
        method="GET",
        path="/openapi.json",
        summary="This API as OpenAPI 3.1",
        plane=Plane.CONTROL,
        permission="docs:read",
        kind=Kind.ASGI,
        resource=None,
        scoped=False,
        tag="docs",
    ),
    Route(
        op="docs.get",
        method="GET",
        path="/docs",
        summary="A page to read and try this API in",
        plane=Plane.CONTROL,
        permission="docs:read",
        kind=Kind.ASGI,
        resource=None,
        scoped=False,
        tag="docs",
    ),
)

ROUTES = (*HEALTH_ROUTES, *METRICS_ROUTES, *CONFIG_ROUTES, *DESCRIPTION_ROUTES)
