"""What the execution plane counts: plain numbers on the event loop, turned into series only when somebody asks.

A finished call costs one dictionary look-up and a few additions. :mod:`nova.execution.exposition` reads what is here.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import MetricsSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.domain.outcome import outcome_of
from nova.execution.boots import Booted

OTHER = "_other"
"""Stands for every function, or error type, beyond the bound on series."""
MAX_ERROR_TYPES = 32
"""per function; users name their own exception classes"""
MICROSECOND_BUCKETS = (50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 50_000.0)
SHED = frozenset({"draining", "queue_full", "queue_timeout", "capacity", "build_pending", "timeout"})
"""codes with which the platform turns a call away that was good in itself"""


class Histogram:
    """Counts per bucket; a value on a bound belongs to the bucket below it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(frozen=True, slots=True, order=True)
class FunctionKey:
    """The labels of a function's series."""

    tenant: str
    namespace: str
    function: str


class CallSeries:
    """Everything counted for the calls of one function on one runtime. Durations in microseconds."""

    __slots__ = (
        "cold",
        "cold_starts",
        "errors",
        "failed",
        "key",
        "max_us",
        "min_us",
        "outcomes",
        "queue",
        "runtime",
        "success",
        "total_us",
        "warm",
        "warm_starts",
    )

    def __init__(self, key: FunctionKey, runtime: str, buckets: Sequence[float]) -> None:
        self.key = key
        self.runtime = runtime
        self.success: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.cold_starts: Counter[str] = Counter()
        self.warm_starts = 0
        self.total_us = 0
        self.min_us = 0
        self.max_us = 0
        self.warm = Histogram(buckets)
        self.cold = Histogram(buckets)
        self.queue = Histogram(buckets)

    def add(self, trigger: str, result: CallResult) -> None:
        duration = result.duration_us
        if result.error is None:
            self.success[trigger] += 1
        else:
            self.failed[trigger] += 1
            self.outcomes[outcome_of(result.error, loaded=result.loaded)] += 1
            self._add_error(result.error.type)
        if result.cold_start:
            self.cold_starts[result.source] += 1
            self.cold.observe(duration / 1000)
        else:
            self.warm_starts += 1
            self.warm.observe(duration / 1000)
        self.queue.observe(result.phases.queue_us / 1000)
        if duration < self.min_us or not self.total_us:
            self.min_us = duration
        if duration > self.max_us:
            self.max_us = duration
        self.total_us += duration

    def _add_error(self, kind: str) -> None:
        known = kind in self.errors or len(self.errors) < MAX_ERROR_TYPES
        self.errors[kind if known else OTHER] += 1


@dataclass(slots=True)
class InstanceTally:
    """Instances of one tenant since start."""

    created: int = 0
    stopped: int = 0
    crashed: int = 0
    from_snapshot: int = 0


@dataclass(slots=True)
class _Live:
    backend: str
    count: int = 0


@dataclass(slots=True)
class Counters:
    """Counts by label values, in the order in which the series names its labels."""

    shed: Counter[tuple[str, ...]] = field(default_factory=Counter)
    created: Counter[tuple[str, ...]] = field(default_factory=Counter)
    stopped: Counter[tuple[str, ...]] = field(default_factory=Counter)
    crashed: Counter[tuple[str, ...]] = field(default_factory=Counter)
    builds: Counter[tuple[str, ...]] = field(default_factory=Counter)
    auth_failures: Counter[tuple[str, ...]] = field(default_factory=Counter)
    rate_limited: Counter[tuple[str, ...]] = field(default_factory=Counter)
    rows_deleted: Counter[tuple[str, ...]] = field(default_factory=Counter)
    jobs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    deliveries: Counter[tuple[str, ...]] = field(default_factory=Counter)
    schedule_runs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    events: Counter[tuple[str, ...]] = field(default_factory=Counter)
    workflow_runs: Counter[tuple[str, ...]] = field(default_factory=Counter)
    durable_executions: Counter[tuple[str, ...]] = field(default_factory=Counter)
    workflow_nodes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    trigger_events: Counter[tuple[str, ...]] = field(default_factory=Counter)


class Metrics:
    """Counts since this process started. Every method runs on the event loop, never blocks and never raises."""

    def __init__(self, settings: MetricsSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self.buckets = tuple(sorted(settings.histogram_buckets))
        self.counters = Counters()
        self.calls: dict[tuple[str, str, str, str], CallSeries] = {}
        self.instances: dict[str, InstanceTally] = {}
        self.boots: dict[tuple[str, ...], Histogram] = {}
        self.phases: dict[tuple[str, ...], Histogram] = {}
        self.restores: dict[tuple[str, ...], Histogram] = {}
        self.build_times: dict[tuple[str, ...], Histogram] = {}
        self.overheads: dict[str, Histogram] = {}
        self.lateness: dict[tuple[str, ...], Histogram] = {}
        self.event_lags: dict[tuple[str, ...], Histogram] = {}
        self._max_series = settings.max_series
        self._live: dict[tuple[str, str, str, int], _Live] = {}
        self._clock = clock
        self._started = clock.monotonic()

    @property
    def uptime_s(self) -> float:
        return self._clock.monotonic() - self._started

    # Calls

    def record(self, call: CallRequest, snapshot: FunctionSnapshot, result: CallResult) -> None:
        """Count a finished call. Never blocks; a few microseconds."""
        scope = snapshot.scope
        key = (scope.tenant, scope.namespace, snapshot.name, snapshot.runtime)
        series = self.calls.get(key)
        if series is None:
            series = self._open(key)
        series.add(call.trigger, result)
        if result.cold_start:
            for phase, milliseconds in result.phases.parts():
                self._observe(self.phases, (snapshot.runtime, phase), milliseconds)

    def _open(self, key: tuple[str, str, str, str]) -> CallSeries:
        """The series of a function seen for the first time; one for all of them beyond ``metrics.max_series``."""
        if len(self.calls) >= self._max_series:
            key = (OTHER, OTHER, OTHER, OTHER)
        series = self.calls.get(key)
        if series is None:
            series = self.calls[key] = CallSeries(FunctionKey(*key[:3]), key[3], self.buckets)
        return series

    def refused(self, scope: Scope, function: str, code: str) -> None:
        """A call that was turned away before it reached an instance: ``code`` is the problem's code.

        Only what the platform itself turned away counts, never a bad request.
        """
        if code not in SHED:
            return
        key = (scope.tenant, scope.namespace, function, code)
        if key not in self.counters.shed and len(self.counters.shed) >= self._max_series:
            key = (OTHER, OTHER, OTHER, code)
        self.counters.shed[key] += 1

    def overhead(self, stage: str, microseconds: float) -> None:
        """Time that the platform itself took in one stage of a call."""
        histogram = self.overheads.get(stage)
        if histogram is None:
            histogram = self.overheads[stage] = Histogram(MICROSECOND_BUCKETS)
        histogram.observe(microseconds)

    # Instances (nova.execution.fleet.FleetEvents)

    def instance_created(self, snapshot: FunctionSnapshot, booted: Booted) -> None:
        backend, source = booted.backend.name, booted.instance.source
        labels = (backend, snapshot.runtime, source)
        self.counters.created[labels] += 1
        self._observe(self.boots, labels, (booted.times.instance_us + booted.times.init_us) / 1000)
        self._live.setdefault(_version_key(snapshot), _Live(backend)).count += 1
        tally = self._tally(snapshot)
        tally.created += 1
        tally.from_snapshot += str(source) == "snapshot"

    def snapshot_restored(self, backend: str, took_us: int) -> None:
        self._observe(self.restores, (backend,), took_us / 1000)

    def instance_stopped(self, snapshot: FunctionSnapshot, reason: str, *, crashed: bool) -> None:
        backend = self.backend_of(*_version_key(snapshot))
        self.counters.stopped[backend, reason] += 1
        tally = self._tally(snapshot)
        tally.stopped += 1
        if crashed:
            self.counters.crashed[backend, snapshot.runtime] += 1
            tally.crashed += 1
        self._forget(_version_key(snapshot))

    def backend_of(self, tenant: str, namespace: str, function: str, version: int) -> str:
        """The backend that runs the instances of a version; empty when it has none."""
        live = self._live.get((tenant, namespace, function, version))
        return live.backend if live else ""

    def _forget(self, key: tuple[str, str, str, int]) -> None:
        live = self._live.get(key)
        if live is not None:
            live.count -= 1
            if live.count <= 0:
                del self._live[key]

    def _tally(self, snapshot: FunctionSnapshot) -> InstanceTally:
        return self.instances.setdefault(snapshot.scope.tenant, InstanceTally())

    # What other parts report

    def build_finished(self, runtime: str, status: str, seconds: float) -> None:
        self.counters.builds[runtime, status] += 1
        self._observe(self.build_times, (runtime,), seconds * 1000)

    def auth_failed(self, reason: str) -> None:
        self.counters.auth_failures[reason,] += 1

    def rate_limited(self, tenant: str) -> None:
        self.counters.rate_limited[tenant,] += 1

    def rows_deleted(self, table: str, rows: int) -> None:
        """Rows that a retention removed."""
        self.counters.rows_deleted[table,] += rows

    # Asynchronous calls (nova.events.observers.JobEvents)

    def job_accepted(self, scope: Scope, function: str) -> None:
        self._count_job(scope, function, "accepted")

    def job_retried(self, scope: Scope, function: str) -> None:
        self._count_job(scope, function, "retried")

    def job_ended(self, scope: Scope, function: str, status: str) -> None:
        self._count_job(scope, function, status)

    def _count_job(self, scope: Scope, function: str, status: str) -> None:
        key = (scope.tenant, scope.namespace, function, status)
        if key not in self.counters.jobs and len(self.counters.jobs) >= self._max_series:
            key = (OTHER, OTHER, OTHER, status)
        self.counters.jobs[key] += 1

    def delivery_ended(self, scope: Scope, type: str, status: str) -> None:
        """The outcome of an asynchronous call reached its destination, or never will."""
        self.counters.deliveries[scope.tenant, type, status] += 1

    # Subscriptions (nova.events.bus.dispatch_parts.DeliveryEvents)

    def event_delivered(self, scope: Scope, topic: str, status: str) -> None:
        """A message was delivered to a subscription, is to be tried again, or is dead."""
        key = (scope.tenant, topic, status)
        if key not in self.counters.events and len(self.counters.events) >= self._max_series:
            key = (OTHER, OTHER, status)
        self.counters.events[key] += 1

    def event_lag(self, milliseconds: float) -> None:
        """From the commit of a message to the end of its first attempt."""
        self._observe(self.event_lags, (), milliseconds)

    # Schedules (nova.scheduling.firing.FiringEvents)

    def decided(self, status: str) -> None:
        """An instant of a schedule was fired, skipped or missed."""
        self.counters.schedule_runs[status,] += 1

    def run_ended(self, scope: Scope, workflow: str, status: str) -> None:
        """A run of a workflow ended (nova.events.workflows.observers.RunEvents)."""
        self.counters.workflow_runs[scope.tenant, status] += 1

    def execution_ended(self, scope: Scope, status: str) -> None:
        """A durable execution ended."""
        self.counters.durable_executions[scope.tenant, status] += 1

    def node_ended(self, status: str) -> None:
        self.counters.workflow_nodes[status,] += 1

    def trigger_event(self, type: str, status: str) -> None:
        """What became of an event that a trigger got (nova.events.triggers.deliver.TriggerEvents)."""
        self.counters.trigger_events[type, status] += 1

    def late(self, milliseconds: float) -> None:
        """How long after its instant a schedule fired."""
        self._observe(self.lateness, (), milliseconds)

    def _observe(self, into: dict[tuple[str, ...], Histogram], labels: tuple[str, ...], value: float) -> None:
        histogram = into.get(labels)
        if histogram is None:
            histogram = into[labels] = Histogram(self.buckets)
        histogram.observe(value)


def _version_key(snapshot: FunctionSnapshot) -> tuple[str, str, str, int]:
    return snapshot.scope.tenant, snapshot.scope.namespace, snapshot.name, snapshot.version
