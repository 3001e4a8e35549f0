"""What this node says of itself: its report to whoever places calls, and the figures in its row of ``cluster_nodes``."""

import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from nova import __version__
from nova.api.system import CallTotals
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.node import NodeReport, NodeState, WarmPool
from nova.execution.admission import NodeMemory
from nova.ids import new_id

FRESH_S = 1.0
RECENT_S = 60.0
_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_STAT = Path("/proc/stat")
_PRESSURE = Path("/proc/pressure")


class Member(Protocol):
    """What is needed of :class:`nova.work.membership.Membership`."""

    address: str
    state: NodeState
    labels: dict[str, str]


class HostMemory(NodeMemory):
    def usage_mb(self) -> tuple[int, int]:
        """Total and used memory of the machine as this process may use it, in MiB."""
        total, available = self.measure()
        return total >> 20, (total - available) >> 20


class HostCpu:
    """The processors that this process may use."""

    def __init__(self, stat: Path = _STAT, cpu_max: Path = _CPU_MAX) -> None:
        self._stat = stat
        self._cpus = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        self.cores = min(float(len(self._cpus)), _quota(cpu_max))
        self._busy, self._all = self._ticks()

    def used(self) -> float:
        """Cores that were busy since this was last asked."""
        busy, total = self._ticks()
        passed = total - self._all
        share = (busy - self._busy) / passed if passed else 0.0
        self._busy, self._all = busy, total
        return round(min(max(share, 0.0) * len(self._cpus), self.cores), 2)

    def _ticks(self) -> tuple[int, int]:
        """Busy ticks and all ticks of our processors since the machine started."""
        busy = total = 0
        for line in self._stat.read_text().splitlines():
            name, *fields = line.split()
            if name in self._cpus:
                user, nice, system, idle, wait, irq, softirq, steal = map(int, fields[:8])
                busy += user + nice + system + irq + softirq + steal
                total += user + nice + system + irq + softirq + steal + idle + wait
        return busy, total


class NodeReporter:
    """Makes the reports of this process. ``stats`` gives the pools as they are (``Fleet.stats``), ``calls`` the totals of
    calls since start, ``backends`` the names of those that work here."""

    def __init__(
        self,
        stats: Callable[[], Mapping[str, Any]],
        calls: Callable[[], CallTotals],
        backends: Callable[[], Iterable[str]],
        *,
        name: str,
        clock: Clock = SYSTEM_CLOCK,
        cpu: HostCpu | None = None,
        memory: HostMemory | None = None,
    ) -> None:
        self.node_id = new_id()
        self._name = name
        self._stats = stats
        self._backends = backends
        self._clock = clock
        self._cpu = cpu or HostCpu()
        self._memory = memory or HostMemory()
        self._recent = RecentCalls(calls, clock)
        self._member: Member | None = None
        self._made_at = float("-inf")
        self._report = NodeReport(self.node_id, name, "")

    def joined(self, member: Member) -> None:
        """From now on address, state and labels are the row's."""
        self._member = member
        self._made_at = float("-inf")

    def report(self) -> NodeReport:
        """Measured at most once a second; a change of state by an operator shows at once."""
        now = self._clock.monotonic()
        stale = self._member is not None and self._member.state != self._report.state
        if stale or now - self._made_at >= FRESH_S:
            self._made_at = now
            self._report = self._measure()
        return self._report

    def load(self) -> dict[str, Any]:
        """The changing part of the node's row. Usages and pressures are shares from 0 to 1; a pressure that the kernel does
        not measure is null."""
        report = self.report()
        return {
            "cpu_usage": round(report.cpu_used / report.cpu_cores, 3) if report.cpu_cores else 0.0,
            "memory_usage": round(report.memory_used_mb / report.memory_mb, 3) if report.memory_mb else 0.0,
            "io_pressure": _pressure("io"),
            "memory_pressure": _pressure("memory"),
            "max_vms": report.max_instances,
            "active_vms": report.instances,
            "queue_depth": report.queued,
            "inflight": report.inflight,
            **self._recent.figures(),
            "warm": [asdict(pool) for pool in report.warm],
        }

    def _measure(self) -> NodeReport:
        stats, member = self._stats(), self._member
        total_mb, used_mb = self._memory.usage_mb()
        return NodeReport(
            node_id=self.node_id,
            name=self._name,
            address=member.address if member else "",
            state=member.state if member else "active",
            cpu_cores=self._cpu.cores,
            cpu_used=self._cpu.used(),
            memory_mb=total_mb,
            memory_used_mb=used_mb,
            max_instances=stats["max_instances"],
            instances=stats["instances"],
            inflight=stats["inflight"],
            queued=stats["waiting"],
            warm=tuple(_warm(pool) for pool in stats["pools"] if not pool["evicted"] and pool["ready"] + pool["busy"]),
            backends=tuple(sorted(self._backends())),
            arch=architecture(),
            version=__version__,
            labels=dict(member.labels) if member else {},
        )


class RecentCalls:
    """Calls of the last minute, from the totals since start."""

    def __init__(self, totals: Callable[[], CallTotals], clock: Clock) -> None:
        self._totals = totals
        self._clock = clock
        self._samples: deque[tuple[float, CallTotals]] = deque([(clock.monotonic(), totals())])

    def figures(self) -> dict[str, float]:
        """``invocations_1m``, ``avg_latency_ms`` and ``error_rate`` (0 to 1); zeros when there was no call."""
        now, totals = self._clock.monotonic(), self._totals()
        self._samples.append((now, totals))
        while len(self._samples) > 2 and now - self._samples[1][0] >= RECENT_S:
            self._samples.popleft()
        before = self._samples[0][1]
        calls = totals.total_invocations - before.total_invocations
        failed = totals.failed_invocations - before.failed_invocations
        latency = totals.total_latency_ms - before.total_latency_ms
        return {
            "invocations_1m": calls,
            "avg_latency_ms": round(latency / calls, 3) if calls else 0.0,
            "error_rate": round(failed / calls, 4) if calls else 0.0,
        }


def architecture() -> str:
    """amd64, arm64 or what the kernel calls it."""
    machine = platform.machine()
    return _ARCH.get(machine, machine)


def _warm(pool: Mapping[str, Any]) -> WarmPool:
    return WarmPool(
        tenant=pool["tenant"],
        namespace=pool["namespace"],
        function=pool["function"],
        version=pool["version"],
        instances=pool["ready"] + pool["busy"],
        free=pool["free"],
    )


def _quota(cpu_max: Path) -> float:
    """Cores that the control group allows; infinite without a limit."""
    try:
        quota, period = cpu_max.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max": no limit
        return float("inf")


def _pressure(resource: str) -> float | None:
    """Share of the last ten seconds in which somebody waited for it."""
    try:
        line = (_PRESSURE / resource).read_text().splitlines()[0]
        return round(float(line.split("avg10=")[1].split()[0]) / 100, 4)
    except (OSError, ValueError, IndexError):
        return None
