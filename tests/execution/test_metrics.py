"""What is counted, and how it is shown."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nova.config import MetricsSettings
from nova.domain.identity import Scope
from nova.execution.exposition import SERIES, Exposition
from nova.execution.logs import LogCounts
from nova.execution.metrics import MAX_ERROR_TYPES, OTHER, Histogram, Metrics
from nova.execution.slots import BootTimes
from tests.execution.fakes import make_snapshot
from tests.execution.finished import boom, finished
from tests.execution.observed import pool_row
from tests.mock_clock import MockClock


def _record(metrics: Metrics, snapshot: Any, **changes: Any) -> None:
    call, result = finished(snapshot, **changes)
    metrics.record(call, snapshot, result)


def _exposition(
    metrics: Metrics, pools: list[dict[str, Any]] | None = None, logs: LogCounts | None = None
) -> Exposition:
    return Exposition(metrics, logs or LogCounts(), lambda: {"pools": pools or []}, namespace="nova")


def _samples(
    exposition: Exposition, tenants: set[str] | None = None
) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, _ = exposition.prometheus("text/plain", tenants)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def _value(samples: dict[Any, float], name: str, **labels: str) -> float:
    matching = [v for (n, found), v in samples.items() if n == name and labels.items() <= dict(found).items()]
    assert matching, f"no sample of {name} with {labels}"
    return sum(matching)


@dataclass
class _Named:
    name: str = "sandbox"


@dataclass
class _Source:
    source: str = "template"


@dataclass
class _Booted:
    backend: _Named
    instance: _Source
    times: BootTimes


def _booted(source: str = "template") -> Any:
    times = BootTimes(source=source, instance_us=3000, init_us=4000)  # type: ignore[arg-type]
    return _Booted(_Named(), _Source(source), times)


def _everything() -> tuple[Metrics, Exposition]:
    """Every kind of event once."""
    metrics = Metrics(MetricsSettings(), MockClock())
    hello = make_snapshot()
    _record(metrics, hello)
    _record(metrics, hello, error=boom(), cold_start=True, source="template", duration_us=80_000)
    metrics.refused(Scope(), "hello", "queue_full")
    for _ in range(3):
        metrics.instance_created(hello, _booted())
    metrics.instance_stopped(hello, "idle", crashed=False)
    metrics.instance_stopped(hello, "lost", crashed=True)
    metrics.build_finished("python", "succeeded", 1.5)
    metrics.auth_failed("unauthenticated")
    metrics.rate_limited("default")
    metrics.rows_deleted("invocation_logs", 7)
    metrics.job_accepted(Scope(), "hello")
    metrics.job_retried(Scope(), "hello")
    metrics.job_ended(Scope(), "hello", "succeeded")
    metrics.delivery_ended(Scope(), "webhook", "delivered")
    metrics.decided("fired")
    metrics.late(12.0)
    metrics.snapshot_restored("sandbox", 4000)
    metrics.overhead("gateway", 40.0)
    metrics.event_delivered(Scope(), "orders", "succeeded")
    metrics.event_lag(3.0)
    metrics.run_ended(Scope(), "saga", "succeeded")
    metrics.node_ended("succeeded")
    metrics.execution_ended(Scope(), "completed")
    metrics.trigger_event("webhook", "succeeded")
    pools = [pool_row(instances=3, ready=1, busy=2, inflight=2, waiting=4)]
    return metrics, _exposition(metrics, pools, LogCounts(spilled=5, dropped=1, flush_failures=2))


def test_every_declared_series_has_a_sample() -> None:
    """OB1: each series that is promised is set by code."""
    _, exposition = _everything()
    text, _ = exposition.prometheus("", None)
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    declared = {f"nova_{name}".removesuffix("_total") for name in SERIES}
    assert set(families) == declared
    assert [name for name, family in families.items() if not family.samples] == []
    for name, series in SERIES.items():
        family = families[f"nova_{name}".removesuffix("_total")]
        assert family.type == series.kind
        assert all(set(series.labels) <= set(sample.labels) for sample in family.samples)


def test_the_numbers_are_those_of_the_events() -> None:
    samples = _samples(_everything()[1])
    f = {"tenant": "default", "namespace": "default", "function": "hello"}
    assert _value(samples, "nova_invocations_total", **f, runtime="python", status="success", trigger="http") == 1
    assert _value(samples, "nova_invocations_total", **f, status="error") == 1
    assert _value(samples, "nova_invocation_errors_total", **f, type="ValueError") == 1
    assert _value(samples, "nova_cold_starts_total", **f, source="template") == 1
    assert _value(samples, "nova_warm_starts_total", **f) == 1
    assert _value(samples, "nova_invocation_duration_milliseconds_sum", **f, cold_start="true") == 80
    assert _value(samples, "nova_invocation_duration_milliseconds_bucket", **f, cold_start="true", le="50") == 0
    assert _value(samples, "nova_invocation_duration_milliseconds_bucket", **f, cold_start="true", le="100") == 1
    assert _value(samples, "nova_invocation_duration_milliseconds_bucket", **f, cold_start="true", le="+Inf") == 1
    assert _value(samples, "nova_queue_wait_milliseconds_count", **f) == 2
    assert _value(samples, "nova_shed_total", **f, reason="queue_full") == 1
    assert _value(samples, "nova_instances_created_total", backend="sandbox", source="template") == 3
    assert _value(samples, "nova_instances_stopped_total", backend="sandbox", reason="idle") == 1
    assert _value(samples, "nova_instances_crashed_total", backend="sandbox", runtime="python") == 1
    assert _value(samples, "nova_instance_boot_milliseconds_sum", backend="sandbox") == 21
    assert [_value(samples, "nova_async_jobs_total", **f, status=s) for s in ("accepted", "retried", "succeeded")] == [
        1,
        1,
        1,
    ]
    assert _value(samples, "nova_destination_deliveries_total", tenant="default", type="webhook") == 1
    assert _value(samples, "nova_schedule_runs_total", status="fired") == 1
    assert _value(samples, "nova_schedule_lateness_milliseconds_sum") == 12
    assert _value(samples, "nova_active_instances", backend="sandbox", state="busy") == 2
    assert _value(samples, "nova_pool_instances", **f, state="ready") == 1
    assert _value(samples, "nova_pool_utilization_ratio", **f) == pytest.approx(2 / 3)
    assert _value(samples, "nova_queue_depth", **f) == 4
    assert _value(samples, "nova_active_requests") == 2
    assert _value(samples, "nova_build_milliseconds_sum", runtime="python") == 1500
    assert _value(samples, "nova_log_records_spilled_total") == 5
    assert _value(samples, "nova_log_records_dropped_total") == 1
    assert _value(samples, "nova_log_flush_failures_total") == 2
    assert _value(samples, "nova_retention_rows_deleted_total", table="invocation_logs") == 7
    assert _value(samples, "nova_overhead_microseconds_sum", stage="gateway") == 40


def test_tenants_with_equal_function_names_have_separate_series() -> None:
    """OB1: and each sees its own."""
    metrics = Metrics(MetricsSettings())
    for tenant, calls in (("a", 1), ("b", 2)):
        for _ in range(calls):
            _record(metrics, make_snapshot(scope=Scope(tenant)))
    everybody = _samples(_exposition(metrics))
    assert _value(everybody, "nova_invocations_total", tenant="a") == 1
    assert _value(everybody, "nova_invocations_total", tenant="b") == 2
    only_a = _samples(_exposition(metrics), {"a"})
    assert not [labels for (_, labels) in only_a if ("tenant", "b") in labels]
    assert _exposition(metrics).totals({"a"}).total_invocations == 1
    assert list(_exposition(metrics).functions(Scope("b"))) == ["hello"]


def test_the_number_of_series_is_bounded() -> None:
    """OB1: functions beyond metrics.max_series share one series, and no call is uncounted."""
    metrics = Metrics(MetricsSettings(max_series=10))
    for number in range(1000):
        _record(metrics, make_snapshot(f"f{number}"))
        metrics.refused(Scope(), f"f{number}", "queue_full")
    samples = _samples(_exposition(metrics))
    functions = {dict(labels)["function"] for (name, labels) in samples if name == "nova_invocations_total"}
    assert functions == {f"f{n}" for n in range(10)} | {OTHER}
    assert _value(samples, "nova_invocations_total") == 1000
    assert _value(samples, "nova_invocations_total", function=OTHER) == 990
    assert _value(samples, "nova_shed_total") == 1000
    assert len([1 for (name, _) in samples if name == "nova_shed_total"]) == 11


def test_invented_error_types_do_not_make_series_without_end() -> None:
    """OB1: users name their exception classes; only so many become label values."""
    metrics = Metrics(MetricsSettings())
    hello = make_snapshot()
    for number in range(500):
        _record(metrics, hello, error=boom(f"Error{number}"))
    samples = _samples(_exposition(metrics))
    assert _value(samples, "nova_invocation_errors_total") == 500
    assert len([1 for (name, _) in samples if name == "nova_invocation_errors_total"]) == MAX_ERROR_TYPES + 1


def test_names_and_buckets_come_from_the_settings() -> None:
    metrics = Metrics(MetricsSettings(histogram_buckets=[2, 1]))
    _record(metrics, make_snapshot(), duration_us=1000)
    text, _ = Exposition(metrics, LogCounts(), lambda: {"pools": []}, namespace="mine").prometheus("", None)
    buckets = re.findall(r'^mine_invocation_duration_milliseconds_bucket.*le="([^"]+)".* 1.0$', text.decode(), re.M)
    assert buckets == ["1", "2", "+Inf"]


def test_openmetrics_is_given_to_those_who_ask() -> None:
    exposition = _exposition(Metrics(MetricsSettings()))
    text, content_type = exposition.prometheus("application/openmetrics-text; version=1.0.0", None)
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_a_redeployed_function_goes_on_counting_in_one_series() -> None:
    metrics = Metrics(MetricsSettings())
    _record(metrics, make_snapshot(function_id="before"))
    _record(metrics, make_snapshot(function_id="after", version=2))
    samples = _samples(_exposition(metrics))
    assert [v for (name, _), v in samples.items() if name == "nova_invocations_total"] == [2]


def test_a_function_on_two_runtimes_keeps_one_wait_series() -> None:
    metrics = Metrics(MetricsSettings())
    _record(metrics, make_snapshot())
    _record(metrics, make_snapshot(runtime="node"))
    samples = _samples(_exposition(metrics))
    assert _value(samples, "nova_queue_wait_milliseconds_count") == 2
    assert _value(samples, "nova_warm_starts_total", runtime="node") == 1


def test_totals_have_the_plain_names() -> None:
    totals = _everything()[1].totals(None)
    assert totals.model_dump() == {
        "total_invocations": 2,
        "success_invocations": 1,
        "failed_invocations": 1,
        "cold_starts": 1,
        "warm_starts": 1,
        "total_latency_ms": 81.5,
        "min_latency_ms": 1.5,
        "max_latency_ms": 80.0,
    }


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.counts == [1, 2, 1]


def test_uptime_grows() -> None:
    """GW12: uptime is measured, not stamped."""
    clock = MockClock()
    metrics = Metrics(MetricsSettings(), clock)
    clock._monotonic += 90
    assert _value(_samples(_exposition(metrics)), "nova_uptime_seconds") == 90
