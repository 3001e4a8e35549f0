"""How many instances this machine carries, and when it has no memory left for another.

The functions' own limits are hard, so adding them up would leave the machine empty: an idle instance shares almost all
of its pages. The number of instances is therefore bounded by what an instance costs at least, and a boot is refused
while less than a tenth of the memory (of the host, or of the control group that the daemon lives in) is available.
"""

from collections.abc import Callable
from pathlib import Path

INSTANCE_FLOOR_MB = 16
MIN_AVAILABLE = 0.1
_FRESH_S = 0.25
_STALE_S = 2.0
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""folder, limit, usage, and the part of the usage that is only page cache: version 2, version 1"""


class NodeMemory:
    """Memory of the machine as the daemon may use it: all of it, or ``budget_mb`` (MiB, asked for at each look; 0: all)."""

    def __init__(self, meminfo: Path = Path("/proc/meminfo"), *, budget_mb: Callable[[], int] = lambda: 0) -> None:
        self._meminfo = meminfo
        self._budget_mb = budget_mb
        self._read_at = float("-inf")
        self._low = False

    def capacity(self) -> int:
        """How many instances fit at most."""
        total, _ = self.measure()
        return max(16, total // (INSTANCE_FLOOR_MB << 20))

    def low(self, now: float) -> bool:
        """Is there no room for another instance? As of the last :meth:`look`, if that was a moment ago."""
        if self._low or now - self._read_at >= _STALE_S:
            self.look(now)
        return self._low

    def look(self, now: float) -> None:
        """Measure, at most four times a second: a tenth of a millisecond that nobody should wait for."""
        if now - self._read_at >= _FRESH_S:
            total, available = self.measure()
            self._read_at = now
            self._low = available < total * MIN_AVAILABLE

    def measure(self) -> tuple[int, int]:
        """Total and available bytes: the host's, or the control group's or the budget's when that is tighter."""
        fields = dict(line.split(":", 1) for line in self._meminfo.read_text().splitlines())
        total = int(fields["MemTotal"].split()[0]) << 10
        available = int(fields["MemAvailable"].split()[0]) << 10
        for folder, limit_file, used_file, cache in _CGROUPS:
            limit = _number(folder / limit_file)
            if limit is not None and limit < total:
                used = (_number(folder / used_file) or 0) - _cached(folder / "memory.stat", cache)
                total, available = limit, min(available, limit - used)
        budget = self._budget_mb() << 20
        if budget and budget < total:
            total, available = budget, max(0, budget - (total - available))
        return total, available


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _cached(stat: Path, name: str) -> int:
    try:
        fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines())
        return int(fields.get(name, 0))
    except (OSError, ValueError):
        return 0
