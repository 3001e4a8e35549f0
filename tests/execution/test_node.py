"""What a node says of itself: true figures, at most once a second, and an operator's word at once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nova.api.system import CallTotals
from nova.domain.node import WarmPool
from nova.execution.node import HostCpu, HostMemory, NodeReporter
from tests.mock_clock import MockClock

POOL = {
    "tenant": "default",
    "namespace": "default",
    "function": "hello",
    "version": 3,
    "ready": 2,
    "free": 2,
    "busy": 1,
    "evicted": False,
}


def stats(**values: Any) -> dict[str, Any]:
    return {"max_instances": 64, "instances": 4, "inflight": 1, "waiting": 5, "pools": [POOL], **values}


def totals(calls: int = 0, failed: int = 0, latency_ms: float = 0) -> CallTotals:
    return CallTotals(
        total_invocations=calls,
        success_invocations=calls - failed,
        failed_invocations=failed,
        cold_starts=0,
        warm_starts=calls,
        total_latency_ms=latency_ms,
        min_latency_ms=0,
        max_latency_ms=0,
    )


def reporter(clock: MockClock, now: dict[str, Any], **values: Any) -> NodeReporter:
    return NodeReporter(
        lambda: now["stats"],
        lambda: now["calls"],
        lambda: ["sandbox"],
        name="rack-1",
        clock=clock,
        **values,
    )


def test_the_report_tells_of_the_machine_and_its_pools() -> None:
    """GW7, SC9: every value is a measured one."""
    evicted, empty = {**POOL, "function": "old", "evicted": True}, {**POOL, "function": "cold", "ready": 0, "busy": 0}
    made = reporter(MockClock(), {"stats": stats(pools=[POOL, evicted, empty]), "calls": totals()})
    report = made.report()
    assert report.warm == (WarmPool("default", "default", "hello", 3, 3, 2),)
    assert (report.max_instances, report.instances, report.inflight, report.queued) == (64, 4, 1, 5)
    assert (report.name, report.backends, report.node_id) == ("rack-1", ("sandbox",), made.node_id)
    assert 0 < report.memory_used_mb < report.memory_mb
    assert report.cpu_cores > 0
    assert 0 <= report.cpu_used <= report.cpu_cores


@pytest.mark.anyio
async def test_it_is_measured_once_a_second_and_follows_the_operator_at_once() -> None:
    clock, now = MockClock(), {"stats": stats(), "calls": totals()}
    made = reporter(clock, now)
    assert made.report().state == "active"
    member = SimpleNamespace(address="10.0.0.7:9090", state="active", labels={"zone": "a"})
    made.joined(member)
    assert (made.report().address, made.report().labels) == ("10.0.0.7:9090", {"zone": "a"})
    now["stats"] = stats(inflight=9)
    assert made.report().inflight == 1
    member.state = "draining"
    assert (made.report().state, made.report().inflight) == ("draining", 9)
    now["stats"] = stats(inflight=3)
    await clock.advance(1)
    assert made.report().inflight == 3


@pytest.mark.anyio
async def test_the_load_tells_of_the_last_minute() -> None:
    clock, now = MockClock(), {"stats": stats(), "calls": totals(100, 50, 100_000)}
    made = reporter(clock, now)
    assert made.load()["invocations_1m"] == 0
    await clock.advance(30)
    now["calls"] = totals(110, 52, 100_040)
    load = made.load()
    assert (load["invocations_1m"], load["avg_latency_ms"], load["error_rate"]) == (10, 4.0, 0.2)
    assert (load["max_vms"], load["active_vms"], load["queue_depth"], load["inflight"]) == (64, 4, 5, 1)
    assert load["warm"][0]["free"] == 2
    for _ in range(14):
        await clock.advance(5)
        load = made.load()
    assert (load["invocations_1m"], load["error_rate"]) == (0, 0.0)


def test_the_processors_are_those_that_we_may_use(tmp_path: Path) -> None:
    """Affinity and the control group's quota count, not what the machine has."""
    stat, limit = tmp_path / "stat", tmp_path / "cpu.max"
    cpus = sorted(HostCpu()._cpus)

    def write(busy: int, idle: int) -> None:
        stat.write_text("\n".join(f"{cpu} {busy} 0 0 {idle} 0 0 0 0 0 0" for cpu in [*cpus, "cpu9999"]))

    write(0, 0)
    limit.write_text("50000 100000\n")
    limited, free = HostCpu(stat, limit), HostCpu(stat, tmp_path / "none")
    assert (limited.cores, free.cores) == (0.5, len(cpus))
    write(50, 50)
    assert (limited.used(), free.used()) == (min(0.5, len(cpus) / 2), len(cpus) / 2)
    write(50, 150)
    assert free.used() == 0


def test_memory_is_the_machines_or_the_control_groups() -> None:
    total, used = HostMemory().usage_mb()
    assert 0 < used < total
