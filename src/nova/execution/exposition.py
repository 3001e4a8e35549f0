"""The execution plane's counts as Prometheus series and as JSON totals, made when somebody asks."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from nova.api.system import CallTotals
from nova.domain.identity import Scope
from nova.execution.logs import LogCounts
from nova.execution.metrics import CallSeries, FunctionKey, Histogram, InstanceTally, Metrics

Kind = Literal["counter", "histogram", "gauge"]
Tenants = Collection[str] | None
"""Whose series to show; None: everybody's."""
_F = ("tenant", "namespace", "function")


@dataclass(frozen=True, slots=True)
class Series:
    kind: Kind
    labels: tuple[str, ...]
    help: str


SERIES: Mapping[str, Series] = {
    "invocations_total": Series("counter", (*_F, "runtime", "status", "trigger"), "Finished calls"),
    "invocation_errors_total": Series("counter", (*_F, "type"), "Calls that ended in an error, by its type"),
    "call_outcomes_total": Series(
        "counter", (*_F, "outcome"), "Finished calls by how they ended: why a call failed, in one word"
    ),
    "cold_start_phase_milliseconds": Series(
        "histogram", ("runtime", "phase"), "Where the time of calls went that had to wait for an instance"
    ),
    "cold_starts_total": Series("counter", (*_F, "runtime", "source"), "Calls that had to wait for an instance"),
    "warm_starts_total": Series("counter", (*_F, "runtime"), "Calls that found an instance ready"),
    "invocation_duration_milliseconds": Series("histogram", (*_F, "runtime", "cold_start"), "Duration of calls"),
    "queue_wait_milliseconds": Series("histogram", _F, "Time that calls waited for a slot"),
    "overhead_microseconds": Series("histogram", ("stage",), "Time the platform itself took, by stage of a call"),
    "shed_total": Series("counter", (*_F, "reason"), "Calls turned away before they reached an instance"),
    "instances_created_total": Series("counter", ("backend", "runtime", "source"), "Instances made"),
    "instances_stopped_total": Series("counter", ("backend", "reason"), "Instances stopped"),
    "instances_crashed_total": Series("counter", ("backend", "runtime"), "Instances that died by themselves"),
    "instance_boot_milliseconds": Series(
        "histogram", ("backend", "runtime", "source"), "From wanting an instance to its code being loaded"
    ),
    "snapshots_hit_total": Series("counter", ("backend",), "Instances that came from a function that was kept loaded"),
    "snapshot_restore_milliseconds": Series(
        "histogram", ("backend",), "From wanting an instance to its serving, where it came from a snapshot"
    ),
    "active_instances": Series("gauge", ("backend", "state"), "Instances by state"),
    "pool_instances": Series("gauge", (*_F, "state"), "Instances of a function by state"),
    "pool_utilization_ratio": Series("gauge", _F, "Busy instances of all that could take a call"),
    "queue_depth": Series("gauge", _F, "Calls waiting for a slot"),
    "active_requests": Series("gauge", (), "Calls running in instances"),
    "builds_total": Series("counter", ("runtime", "status"), "Finished builds"),
    "build_milliseconds": Series("histogram", ("runtime",), "Duration of builds"),
    "auth_failures_total": Series("counter", ("reason",), "Requests whose credentials were refused"),
    "rate_limited_total": Series("counter", ("tenant",), "Requests refused by a rate limit"),
    "log_records_spilled_total": Series("counter", (), "Call records that went to disk because of the database"),
    "log_records_dropped_total": Series("counter", (), "Call records that were lost"),
    "log_flush_failures_total": Series("counter", (), "Attempts to write call records that failed"),
    "async_jobs_total": Series("counter", (*_F, "status"), "Asynchronous calls accepted, tried again and ended"),
    "destination_deliveries_total": Series(
        "counter", ("tenant", "type", "status"), "Outcomes sent on to functions, topics, workflows and webhooks"
    ),
    "event_deliveries_total": Series(
        "counter", ("tenant", "topic", "status"), "Messages of topics delivered, tried again and dead"
    ),
    "event_lag_milliseconds": Series("histogram", (), "From a message's commit to the end of its first delivery"),
    "schedule_runs_total": Series("counter", ("status",), "Instants of schedules, by what was done"),
    "workflow_runs_total": Series("counter", ("tenant", "status"), "Runs of workflows that ended"),
    "durable_executions_total": Series("counter", ("tenant", "status"), "Durable executions that ended"),
    "workflow_nodes_total": Series("counter", ("status",), "Nodes of runs, and items of maps, that ended"),
    "trigger_events_total": Series("counter", ("type", "status"), "Events that triggers got, by what became of them"),
    "schedule_lateness_milliseconds": Series("histogram", (), "From a schedule's instant to its firing"),
    "retention_rows_deleted_total": Series("counter", ("table",), "Rows removed because of their age"),
    "uptime_seconds": Series("gauge", (), "Time since the process started"),
}
"""Every series there is, without the prefix."""

POOL_STATES = ("booting", "ready", "busy", "draining", "stopping")


class Exposition:
    """Renders one process's numbers. ``fleet`` gives the pools as they are now (``Fleet.stats``)."""

    def __init__(
        self, metrics: Metrics, logs: LogCounts, fleet: Callable[[], Mapping[str, Any]], *, namespace: str
    ) -> None:
        self._metrics = metrics
        self._logs = logs
        self._fleet = fleet
        self._namespace = namespace

    def prometheus(self, accept: str, tenants: Tenants) -> tuple[bytes, str]:
        """The text and its content type: OpenMetrics where ``accept`` asks for it, else the classic format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(self._namespace, self._metrics, self._logs, self._fleet(), tenants))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def uptime_s(self) -> float:
        return self._metrics.uptime_s

    def totals(self, tenants: Tenants) -> CallTotals:
        """Over every function of these tenants."""
        return _totals(s for s in self._metrics.calls.values() if _shown(s.key.tenant, tenants))

    def functions(self, scope: Scope) -> dict[str, CallTotals]:
        """By name, the functions of one scope that were called since start."""
        by_name: defaultdict[str, list[CallSeries]] = defaultdict(list)
        for series in self._metrics.calls.values():
            if (series.key.tenant, series.key.namespace) == (scope.tenant, scope.namespace):
                by_name[series.key.function].append(series)
        return {name: _totals(group) for name, group in sorted(by_name.items())}

    def function(self, scope: Scope, name: str) -> CallTotals:
        """One function; zeros when it was not called since start."""
        return self.functions(scope).get(name) or _totals(())

    def instances(self, tenants: Tenants) -> InstanceTally:
        """Instances made, stopped and crashed since start."""
        total = InstanceTally()
        for tenant, tally in self._metrics.instances.items():
            if _shown(tenant, tenants):
                for field in fields(InstanceTally):
                    setattr(total, field.name, getattr(total, field.name) + getattr(tally, field.name))
        return total


class _Scrape(Collector):
    """One answer: yields every series of :data:`SERIES` once."""

    def __init__(
        self, namespace: str, metrics: Metrics, logs: LogCounts, fleet: Mapping[str, Any], tenants: Tenants
    ) -> None:
        self._namespace = namespace
        self._metrics = metrics
        self._logs = logs
        self._pools = [pool for pool in fleet["pools"] if _shown(pool["tenant"], tenants)]
        self._calls = [s for s in metrics.calls.values() if _shown(s.key.tenant, tenants)]
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        yield from self._call_series()
        yield from self._pool_series()
        yield from self._platform_series()

    def _counted(self, name: str, counts: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        series = SERIES[name]
        make = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
        family = make(f"{self._namespace}_{name}", series.help, labels=series.labels)
        for labels, count in counts:
            family.add_metric(labels, count)
        return family

    def _measured(self, name: str, histograms: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
        series = SERIES[name]
        family = HistogramMetricFamily(f"{self._namespace}_{name}", series.help, labels=series.labels)
        for labels, histogram in histograms:
            family.add_metric(labels, _cumulative(histogram), histogram.total)
        return family

    def _call_series(self) -> Iterator[Metric]:
        calls = self._calls
        yield self._counted(
            "invocations_total",
            (
                ((*_names(s.key), s.runtime, status, trigger), count)
                for s in calls
                for status, counts in (("success", s.success), ("error", s.failed))
                for trigger, count in counts.items()
            ),
        )
        errors: defaultdict[tuple[str, ...], int] = defaultdict(int)
        waits: defaultdict[tuple[str, ...], list[Histogram]] = defaultdict(list)
        for s in calls:
            waits[_names(s.key)].append(s.queue)
            for kind, count in s.errors.items():
                errors[*_names(s.key), kind] += count
        yield self._counted("invocation_errors_total", errors.items())
        outcomes: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for s in calls:
            for outcome, count in (("success", s.success.total()), *s.outcomes.items()):
                if count:
                    outcomes[*_names(s.key), outcome] += count
        yield self._counted("call_outcomes_total", outcomes.items())
        yield self._counted(
            "cold_starts_total",
            (((*_names(s.key), s.runtime, source), n) for s in calls for source, n in s.cold_starts.items()),
        )
        yield self._counted("warm_starts_total", (((*_names(s.key), s.runtime), s.warm_starts) for s in calls))
        yield self._measured(
            "invocation_duration_milliseconds",
            (
                ((*_names(s.key), s.runtime, cold), histogram)
                for s in calls
                for cold, histogram in (("true", s.cold), ("false", s.warm))
                if any(histogram.counts)
            ),
        )
        yield self._measured("queue_wait_milliseconds", ((names, _merged(group)) for names, group in waits.items()))

    def _pool_series(self) -> Iterator[Metric]:
        by_backend: defaultdict[tuple[str, ...], int] = defaultdict(int)
        by_function: defaultdict[tuple[str, ...], int] = defaultdict(int)
        depth: defaultdict[tuple[str, ...], int] = defaultdict(int)
        for pool in self._pools:
            names = (pool["tenant"], pool["namespace"], pool["function"])
            backend = self._metrics.backend_of(*names, pool["version"])
            depth[names] += pool["waiting"]
            for state in POOL_STATES:
                by_function[*names, state] += pool[state]
                if backend:
                    by_backend[backend, state] += pool[state]
        usable = {names: by_function[*names, "ready"] + by_function[*names, "busy"] for names in depth}
        yield self._counted("active_instances", by_backend.items())
        yield self._counted("pool_instances", by_function.items())
        yield self._counted(
            "pool_utilization_ratio",
            ((names, by_function[*names, "busy"] / count if count else 0.0) for names, count in usable.items()),
        )
        yield self._counted("queue_depth", depth.items())
        yield self._counted("active_requests", [((), sum(pool["inflight"] for pool in self._pools))])

    def _platform_series(self) -> Iterator[Metric]:
        metrics, counters, logs = self._metrics, self._metrics.counters, self._logs
        yield self._counted("shed_total", self._of_tenants(counters.shed))
        yield self._counted("rate_limited_total", self._of_tenants(counters.rate_limited))
        yield self._counted("instances_created_total", counters.created.items())
        yield self._counted("instances_stopped_total", counters.stopped.items())
        yield self._counted("instances_crashed_total", counters.crashed.items())
        yield self._measured("instance_boot_milliseconds", metrics.boots.items())
        yield self._counted("snapshots_hit_total", ((names, sum(h.counts)) for names, h in metrics.restores.items()))
        yield self._measured("snapshot_restore_milliseconds", metrics.restores.items())
        yield self._measured("cold_start_phase_milliseconds", metrics.phases.items())
        yield self._counted("builds_total", counters.builds.items())
        yield self._measured("build_milliseconds", metrics.build_times.items())
        yield self._counted("auth_failures_total", counters.auth_failures.items())
        yield self._measured("overhead_microseconds", (((stage,), h) for stage, h in metrics.overheads.items()))
        yield self._counted("log_records_spilled_total", [((), logs.spilled)])
        yield self._counted("log_records_dropped_total", [((), logs.dropped)])
        yield self._counted("log_flush_failures_total", [((), logs.flush_failures)])
        yield self._counted("async_jobs_total", self._of_tenants(counters.jobs))
        yield self._counted("destination_deliveries_total", self._of_tenants(counters.deliveries))
        yield self._counted("event_deliveries_total", self._of_tenants(counters.events))
        yield self._measured("event_lag_milliseconds", metrics.event_lags.items())
        yield self._counted("schedule_runs_total", counters.schedule_runs.items())
        yield self._counted("workflow_runs_total", self._of_tenants(counters.workflow_runs))
        yield self._counted("durable_executions_total", self._of_tenants(counters.durable_executions))
        yield self._counted("workflow_nodes_total", counters.workflow_nodes.items())
        yield self._counted("trigger_events_total", counters.trigger_events.items())
        yield self._measured("schedule_lateness_milliseconds", metrics.lateness.items())
        yield self._counted("retention_rows_deleted_total", counters.rows_deleted.items())
        yield self._counted("uptime_seconds", [((), metrics.uptime_s)])

    def _of_tenants(self, counts: Mapping[tuple[str, ...], int]) -> Iterator[tuple[tuple[str, ...], int]]:
        return ((labels, count) for labels, count in counts.items() if _shown(labels[0], self._tenants))


def _shown(tenant: str, tenants: Tenants) -> bool:
    return tenants is None or tenant in tenants


def _names(key: FunctionKey) -> tuple[str, str, str]:
    return key.tenant, key.namespace, key.function


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        seen += count
        buckets.append((bound if isinstance(bound, str) else f"{bound:g}", float(seen)))
    return buckets


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    first, *others = histograms
    total = Histogram(first.bounds)
    for histogram in (first, *others):
        total.counts = [a + b for a, b in zip(total.counts, histogram.counts, strict=True)]
        total.total += histogram.total
    return total


def _totals(group: Iterable[CallSeries]) -> CallTotals:
    series = list(group)
    success = sum(s.success.total() for s in series)
    failed = sum(s.failed.total() for s in series)
    return CallTotals(
        total_invocations=success + failed,
        success_invocations=success,
        failed_invocations=failed,
        cold_starts=sum(s.cold_starts.total() for s in series),
        warm_starts=sum(s.warm_starts for s in series),
        total_latency_ms=sum(s.total_us for s in series) / 1000,
        min_latency_ms=min((s.min_us for s in series), default=0) / 1000,
        max_latency_ms=max((s.max_us for s in series), default=0) / 1000,
    )
