"""The control group of a container that runs already: its limits, what it uses, whether it ran out of memory.

The engine made it and removes it. Going through the engine for this costs two orders of magnitude more than a file does.
"""

from pathlib import Path
from typing import Final, Protocol

from nova.domain.function import Limits
from nova.execution.backends.base import InstanceStats

CPU_PERIOD_US: Final = 100_000


class Group(Protocol):
    def limit(self, limits: Limits) -> None:
        """Hold ``limits`` from now on. Raises OSError; also where this user may not, or the kernel keeps the old ones."""
        ...

    def stats(self) -> InstanceStats:
        """Zeros once the group is gone."""
        ...

    def oom_kills(self) -> int: ...


class GroupV1:
    """``folders``: by controller."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._memory, self._cpu, self._pids = folders["memory"], folders["cpu"], folders["pids"]
        self._accounting = folders.get("cpuacct", folders["cpu"])

    def limit(self, limits: Limits) -> None:
        size = str(limits.memory_mb << 20)
        plain, both = self._memory / "memory.limit_in_bytes", self._memory / "memory.memsw.limit_in_bytes"
        order = [plain]
        if both.exists():
            # Memory alone must never be above memory with swap.
            grows = limits.memory_mb << 20 > int(plain.read_text())
            order = [both, plain] if grows else [plain, both]
        for file in order:
            file.write_text(size)
        (self._cpu / "cpu.cfs_quota_us").write_text(str(int(limits.cpu_ceiling * CPU_PERIOD_US)))
        (self._cpu / "cpu.shares").write_text(str(cpu_shares(limits)))
        (self._pids / "pids.max").write_text(str(limits.pids))

    def stats(self) -> InstanceStats:
        try:
            return InstanceStats(
                memory_bytes=int((self._memory / "memory.usage_in_bytes").read_text()),
                cpu_us=int((self._accounting / "cpuacct.usage").read_text()) // 1000,
                pids=int((self._pids / "pids.current").read_text()),
                oom_kills=self.oom_kills(),
            )
        except OSError:
            return InstanceStats()

    def oom_kills(self) -> int:
        return _field(self._memory / "memory.oom_control", "oom_kill")


class GroupV2:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def limit(self, limits: Limits) -> None:
        folder = self._folder
        (folder / "memory.max").write_text(str(limits.memory_mb << 20))
        (folder / "memory.oom.group").write_text("1")
        (folder / "cpu.max").write_text(f"{int(limits.cpu_ceiling * CPU_PERIOD_US)} {CPU_PERIOD_US}")
        (folder / "cpu.weight").write_text(str(min(10_000, max(1, int(limits.cpu_share * 100)))))
        (folder / "pids.max").write_text(str(limits.pids))

    def stats(self) -> InstanceStats:
        try:
            return InstanceStats(
                memory_bytes=int((self._folder / "memory.current").read_text()),
                cpu_us=_field(self._folder / "cpu.stat", "usage_usec"),
                pids=int((self._folder / "pids.current").read_text()),
                oom_kills=self.oom_kills(),
            )
        except OSError:
            return InstanceStats()

    def oom_kills(self) -> int:
        return _field(self._folder / "memory.events", "oom_kill")


def cpu_shares(limits: Limits) -> int:
    """The share in the engine's unit, where 1024 is one vCPU."""
    return max(2, int(limits.cpu_share * 1024))


def group_of(pid: int) -> Group | None:
    """The group of a process, or None where its files are not to be found from here."""
    try:
        membership = Path(f"/proc/{pid}/cgroup").read_text()
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return None
    return find_group(mounts, membership)


def find_group(mountinfo: str, membership: str) -> Group | None:
    """:func:`group_of` by the texts of ``/proc/self/mountinfo`` and of the process's ``cgroup``."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point, (fstype, _, options) = Path(before.split(" ")[4]), after.split(" ")[:3]
        if fstype == "cgroup":
            v1.update(dict.fromkeys(options.split(","), point))
        elif fstype == "cgroup2":
            v2 = point
    places = {
        name: path.lstrip("/")
        for _, names, path in (line.split(":", 2) for line in membership.splitlines())
        for name in names.split(",")
    }
    folders = {name: v1[name] / place for name, place in places.items() if name in v1}
    if {"memory", "cpu", "pids"} <= folders.keys():
        return GroupV1(folders) if folders["memory"].is_dir() else None
    if v2 is not None and "" in places and (v2 / places[""] / "memory.max").exists():
        return GroupV2(v2 / places[""])
    return None


def _field(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
