"""Limits by control groups: version 1 (a folder per controller), version 2 (one folder), or none at all.

The launcher owns one folder per node and one below it per instance. Guest-side code: standard library only.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

CPU_PERIOD_US = 100_000
_V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
_V1_NEEDED = ("memory", "cpu", "pids")
_V2_CONTROLLERS = ("memory", "cpu", "pids")


@dataclass(frozen=True, slots=True)
class Usage:
    memory_bytes: int = 0
    cpu_us: int = 0
    pids: int = 0


class Group(Protocol):
    """The control group of one instance."""

    oom_event: int | None
    """becomes readable when the group runs out of memory"""

    def join_files(self) -> list[int]:
        """Descriptors to which a process writes ``0`` to move itself into the group; the caller closes them."""
        ...

    def limit(self, memory_bytes: int, vcpus: float, cpu_share: float, pids: int) -> None: ...

    def oom_kills(self) -> int: ...

    def usage(self) -> Usage: ...

    def destroy(self) -> bool:
        """False when the kernel still holds it (call again a little later)."""
        ...


class Groups(Protocol):
    """The groups of one node."""

    hard: bool

    def create(self, name: str) -> Group: ...

    def sweep(self) -> list[str]:
        """Kill and remove what a dead predecessor left; returns the names removed."""
        ...

    def leftovers(self) -> list[str]:
        """Names of the groups that exist."""
        ...

    def close(self) -> None: ...


def _write(path: Path, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _rmdir_all(paths: list[Path]) -> bool:
    gone = [_rmdir(path) for path in paths]
    return all(gone)


def _kill_all(procs: Path) -> None:
    try:
        pids = [int(line) for line in procs.read_text().split()]
    except FileNotFoundError:
        return
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class GroupV1:
    """``folders`` maps controllers to folders; controllers that are mounted together share one."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders
        self._memory = folders["memory"]
        self.oom_event: int | None = None
        try:
            for folder in self._distinct():
                folder.mkdir()
            self.oom_event = self._watch_oom()
        except OSError:
            self.destroy()
            raise

    def _distinct(self) -> list[Path]:
        return list(dict.fromkeys(self._folders.values()))

    def _watch_oom(self) -> int:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open(self._memory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _write(self._memory / "cgroup.event_control", f"{event} {control}")
        finally:
            os.close(control)
        return event

    def join_files(self) -> list[int]:
        flags = os.O_WRONLY | os.O_CLOEXEC
        return [os.open(folder / "cgroup.procs", flags) for folder in self._distinct()]

    def limit(self, memory_bytes: int, vcpus: float, cpu_share: float, pids: int) -> None:
        _write(self._memory / "memory.limit_in_bytes", str(memory_bytes))
        with_swap = self._memory / "memory.memsw.limit_in_bytes"
        if with_swap.exists():
            _write(with_swap, str(memory_bytes))
        else:
            _write(self._memory / "memory.swappiness", "0")
        _write(self._folders["cpu"] / "cpu.cfs_quota_us", str(max(1000, int(vcpus * CPU_PERIOD_US))))
        _write(self._folders["cpu"] / "cpu.shares", str(max(2, int(cpu_share * 1024))))
        _write(self._folders["pids"] / "pids.max", str(pids))

    def oom_kills(self) -> int:
        return _field(self._memory / "memory.oom_control", "oom_kill")

    def usage(self) -> Usage:
        accounting = self._folders.get("cpuacct")
        return Usage(
            memory_bytes=int((self._memory / "memory.usage_in_bytes").read_text()),
            cpu_us=int((accounting / "cpuacct.usage").read_text()) // 1000 if accounting else 0,
            pids=int((self._folders["pids"] / "pids.current").read_text()),
        )

    def destroy(self) -> bool:
        if self.oom_event is not None:
            os.close(self.oom_event)
            self.oom_event = None
        return _rmdir_all(self._distinct())


class GroupsV1:
    hard = True

    def __init__(self, mounts: dict[str, Path], node: str) -> None:
        self._parents = {name: path / f"nova-{node}" for name, path in mounts.items()}
        for parent in self._parents.values():
            parent.mkdir(exist_ok=True)

    def create(self, name: str) -> GroupV1:
        return GroupV1({controller: parent / name for controller, parent in self._parents.items()})

    def sweep(self) -> list[str]:
        found = self.leftovers()
        for name in found:
            for parent in self._parents.values():
                _kill_all(parent / name / "cgroup.procs")
        return [name for name in found if _rmdir_all([parent / name for parent in self._parents.values()])]

    def leftovers(self) -> list[str]:
        return sorted({child.name for p in self._parents.values() for child in p.iterdir() if child.is_dir()})

    def close(self) -> None:
        for parent in self._parents.values():
            _rmdir(parent)


class GroupV2:
    oom_event: int | None = None
    """not needed: ``memory.oom.group`` ends every process of the group, the agent with them"""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        _write(folder / "memory.oom.group", "1")

    def join_files(self) -> list[int]:
        return [os.open(self._folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)]

    def limit(self, memory_bytes: int, vcpus: float, cpu_share: float, pids: int) -> None:
        _write(self._folder / "memory.max", str(memory_bytes))
        if (self._folder / "memory.swap.max").exists():
            _write(self._folder / "memory.swap.max", "0")
        _write(self._folder / "cpu.max", f"{max(1000, int(vcpus * CPU_PERIOD_US))} {CPU_PERIOD_US}")
        _write(self._folder / "cpu.weight", str(min(10_000, max(1, int(cpu_share * 100)))))
        _write(self._folder / "pids.max", str(pids))

    def oom_kills(self) -> int:
        return _field(self._folder / "memory.events", "oom_kill")

    def usage(self) -> Usage:
        return Usage(
            memory_bytes=int((self._folder / "memory.current").read_text()),
            cpu_us=_field(self._folder / "cpu.stat", "usage_usec"),
            pids=int((self._folder / "pids.current").read_text()),
        )

    def destroy(self) -> bool:
        return _rmdir(self._folder)


class GroupsV2:
    hard = True

    def __init__(self, base: Path, node: str) -> None:
        _delegate(base)
        self._parent = base / f"nova-{node}"
        self._parent.mkdir(exist_ok=True)
        _delegate(self._parent)

    def create(self, name: str) -> GroupV2:
        return GroupV2(self._parent / name)

    def sweep(self) -> list[str]:
        names = self.leftovers()
        for name in names:
            kill = self._parent / name / "cgroup.kill"
            if kill.exists():
                _write(kill, "1")
            else:
                _kill_all(self._parent / name / "cgroup.procs")
        return [name for name in names if _rmdir(self._parent / name)]

    def leftovers(self) -> list[str]:
        return sorted(child.name for child in self._parent.iterdir() if child.is_dir())

    def close(self) -> None:
        _rmdir(self._parent)


def _delegate(folder: Path) -> None:
    """Give the children of ``folder`` the controllers. A group that has processes of its own cannot; they move aside."""
    missing = [name for name in _V2_CONTROLLERS if name not in (folder / "cgroup.subtree_control").read_text().split()]
    if not missing:
        return
    wanted = " ".join(f"+{name}" for name in missing)
    try:
        _write(folder / "cgroup.subtree_control", wanted)
    except OSError:
        leaf = folder / "nova-host"
        leaf.mkdir(exist_ok=True)
        for pid in (folder / "cgroup.procs").read_text().split():
            _write(leaf / "cgroup.procs", pid)
        _write(folder / "cgroup.subtree_control", wanted)


class NoGroup:
    oom_event: int | None = None

    def join_files(self) -> list[int]:
        return []

    def limit(self, memory_bytes: int, vcpus: float, cpu_share: float, pids: int) -> None:
        """Nothing holds these here; the launcher sets resource limits on the processes instead."""

    def oom_kills(self) -> int:
        return 0

    def usage(self) -> Usage:
        return Usage()

    def destroy(self) -> bool:
        return True


class NoGroups:
    hard = False

    def create(self, name: str) -> NoGroup:
        return NoGroup()

    def sweep(self) -> list[str]:
        return []

    def leftovers(self) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing was made."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where groups can be made on this host. ``version`` 0: nowhere, and ``reason`` says why."""

    version: int
    reason: str = ""
    mounts: tuple[tuple[str, str], ...] = ()
    """version 1: (controller, its mount point); version 2: one entry, ("", folder to make groups in)"""

    def as_dict(self) -> dict[str, Any]:
        return {"version": self.version, "reason": self.reason, "mounts": [list(item) for item in self.mounts]}

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Layout":
        return cls(data["version"], data["reason"], tuple((name, path) for name, path in data["mounts"]))

    def open(self, node: str) -> Groups:
        if self.version == 1:
            return GroupsV1({name: Path(path) for name, path in self.mounts}, node)
        if self.version == 2:
            return GroupsV2(Path(self.mounts[0][1]), node)
        return NoGroups()


def find_layout(mountinfo: str, membership: str, root: str = "") -> Layout:
    """Decide from the text of ``/proc/self/mountinfo`` and ``/proc/self/cgroup`` where this process may make groups.

    ``root`` names a group below the top of the hierarchies. Without it: version 1, when it has the controllers, at the
    top of each hierarchy, so that a restarted daemon finds what it left; version 2 in the own group when the service
    manager delegated it, else (as root) at the top.
    """
    v1: dict[str, str] = {}
    v2: str | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        point, (fstype, _, options) = before.split(" ")[4], after.split(" ")[:3]
        if fstype == "cgroup":
            below = os.path.join(point, root.strip("/")) if root else point
            v1.update({name: below for name in options.split(",") if name in _V1_CONTROLLERS})
        elif fstype == "cgroup2":
            v2 = point
    if all(name in v1 for name in _V1_NEEDED):
        if not all(os.access(v1[name], os.W_OK) for name in _V1_NEEDED):
            return Layout(0, "the control groups (version 1) of this host are not writable for this user")
        return Layout(1, "", tuple((name, v1[name]) for name in _V1_CONTROLLERS if name in v1))
    if v2 is None:
        return Layout(0, "no control groups are mounted")
    return _find_v2(Path(v2), membership, root)


def _find_v2(top: Path, membership: str, root: str) -> Layout:
    own_path = next((line[3:] for line in membership.splitlines() if line.startswith("0::")), "/")
    own = top / (root or own_path).lstrip("/")
    if os.access(own / "cgroup.subtree_control", os.W_OK) and (root or _delegated(own)):
        folder = own
    elif root:
        return Layout(0, f"the control group {own} is not there or not writable for this user")
    elif os.access(top / "cgroup.subtree_control", os.W_OK):
        folder = top
    else:
        return Layout(0, "no control group is delegated to this user (systemd: Delegate=yes)")
    available = (folder / "cgroup.controllers").read_text().split()
    missing = [name for name in _V2_CONTROLLERS if name not in available]
    if missing:
        return Layout(0, f"the controllers {', '.join(missing)} are not available in {folder}")
    return Layout(2, "", (("", str(folder)),))


def _delegated(folder: Path) -> bool:
    try:
        return os.getxattr(folder, "user.delegate") == b"1"
    except OSError:
        return False


def detect_layout(root: str = "") -> Layout:
    """:func:`find_layout` for this process."""
    return find_layout(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text(), root)
