"""Limits by control groups: version 1 (a folder per controller), version 2 (one folder), or none at all.

The launcher owns one folder per node and one below it per instance. Guest-side code: standard library only.
"""

import errno
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

CPU_PERIOD_US = 100_000
CONTROLLERS = ("memory", "cpu", "pids")


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

    def entry_files(self) -> list[int]:
        """As :meth:`join_files`, for a process of one thread that must not wait for the kernel while it moves."""
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


def _write(path: str, value: str) -> None:
    # Plain system calls: claims are on the path of cold starts, and a text file object costs more than the write.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 65536).decode()
    finally:
        os.close(descriptor)


def _field(path: str, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _rmdir_all(paths: Iterable[str]) -> bool:
    gone = [_rmdir(path) for path in paths]
    return all(gone)


def _folders(parent: str) -> list[str]:
    with os.scandir(parent) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _kill_all(procs: str) -> None:
    try:
        pids = [int(line) for line in _read(procs).split()]
    except FileNotFoundError:
        return
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _quota_us(vcpus: float) -> int:
    return max(1000, int(vcpus * CPU_PERIOD_US))


class GroupV1:
    """``folders`` maps controllers to folders; controllers that are mounted together share one."""

    def __init__(self, folders: dict[str, str], swap: bool) -> None:
        self._folders = folders
        self._swap = swap
        self._memory = folders["memory"]
        self._distinct = tuple(dict.fromkeys(folders.values()))
        self.oom_event: int | None = None
        try:
            for folder in self._distinct:
                os.mkdir(folder)
            self.oom_event = self._watch_oom()
        except OSError:
            self.destroy()
            raise

    def _watch_oom(self) -> int:
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        control = os.open(f"{self._memory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _write(f"{self._memory}/cgroup.event_control", f"{event} {control}")
        except OSError:
            os.close(event)
            raise
        finally:
            os.close(control)
        return event

    def join_files(self) -> list[int]:
        return [os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC) for folder in self._distinct]

    def entry_files(self) -> list[int]:
        # Moving whole processes waits for a grace period of the kernel, moving a thread does not.
        return [os.open(f"{folder}/tasks", os.O_WRONLY | os.O_CLOEXEC) for folder in self._distinct]

    def limit(self, memory_bytes: int, vcpus: float, cpu_share: float, pids: int) -> None:
        cpu = self._folders["cpu"]
        self._limit_memory(str(memory_bytes))
        _write(f"{cpu}/cpu.cfs_quota_us", str(_quota_us(vcpus)))
        _write(f"{cpu}/cpu.shares", str(max(2, int(cpu_share * 1024))))
        _write(f"{self._folders['pids']}/pids.max", str(pids))

    def _limit_memory(self, size: str) -> None:
        own, with_swap = f"{self._memory}/memory.limit_in_bytes", f"{self._memory}/memory.memsw.limit_in_bytes"
        if not self._swap:
            _write(own, size)
            _write(f"{self._memory}/memory.swappiness", "0")
            return
        try:
            _write(own, size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _write(with_swap, size)  # never below the other: whichever is to rise goes first
            _write(own, size)
        else:
            _write(with_swap, size)

    def oom_kills(self) -> int:
        return _field(f"{self._memory}/memory.oom_control", "oom_kill")

    def usage(self) -> Usage:
        accounting = self._folders.get("cpuacct")
        return Usage(
            memory_bytes=int(_read(f"{self._memory}/memory.usage_in_bytes")),
            cpu_us=int(_read(f"{accounting}/cpuacct.usage")) // 1000 if accounting else 0,
            pids=int(_read(f"{self._folders['pids']}/pids.current")),
        )

    def destroy(self) -> bool:
        if self.oom_event is not None:
            os.close(self.oom_event)
            self.oom_event = None
        return _rmdir_all(self._distinct)


class GroupsV1:
    hard = True

    def __init__(self, mounts: dict[str, str], node: str) -> None:
        self._parents = {name: f"{path}/nova-{node}" for name, path in mounts.items()}
        self._make_parents()
        self._swap = os.path.exists(f"{self._parents['memory']}/memory.memsw.limit_in_bytes")

    def _make_parents(self) -> None:
        for parent in self._parents.values():
            os.makedirs(parent, exist_ok=True)

    def create(self, name: str) -> GroupV1:
        folders = {controller: f"{parent}/{name}" for controller, parent in self._parents.items()}
        try:
            return GroupV1(folders, self._swap)
        except FileNotFoundError:
            # The launcher of a daemon that was killed a moment ago cleaned up after itself just now.
            self._make_parents()
            return GroupV1(folders, self._swap)

    def sweep(self) -> list[str]:
        found = self.leftovers()
        for name in found:
            for parent in self._parents.values():
                _kill_all(f"{parent}/{name}/cgroup.procs")
        return [name for name in found if _rmdir_all(f"{parent}/{name}" for parent in self._parents.values())]

    def leftovers(self) -> list[str]:
        return sorted({name for parent in self._parents.values() for name in _folders(parent)})

    def close(self) -> None:
        _rmdir_all(self._parents.values())


class GroupV2:
    oom_event: int | None = None
    """not needed: ``memory.oom.group`` ends every process of the group, the agent with them"""

    def __init__(self, folder: str, swap: bool) -> None:
        self._folder = folder
        self._swap = swap
        os.mkdir(folder)
        _write(f"{folder}/memory.oom.group", "1")

    def join_files(self) -> list[int]:
        return [os.open(f"{self._folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)]

    def entry_files(self) -> list[int]:
        return self.join_files()

    def limit(self, memory_bytes: int, vcpus: float, cpu_share: float, pids: int) -> None:
        folder = self._folder
        _write(f"{folder}/memory.max", str(memory_bytes))
        if self._swap:
            _write(f"{folder}/memory.swap.max", "0")
        _write(f"{folder}/cpu.max", f"{_quota_us(vcpus)} {CPU_PERIOD_US}")
        _write(f"{folder}/cpu.weight", str(min(10_000, max(1, int(cpu_share * 100)))))
        _write(f"{folder}/pids.max", str(pids))

    def oom_kills(self) -> int:
        return _field(f"{self._folder}/memory.events", "oom_kill")

    def usage(self) -> Usage:
        return Usage(
            memory_bytes=int(_read(f"{self._folder}/memory.current")),
            cpu_us=_field(f"{self._folder}/cpu.stat", "usage_usec"),
            pids=int(_read(f"{self._folder}/pids.current")),
        )

    def destroy(self) -> bool:
        return _rmdir(self._folder)


class GroupsV2:
    hard = True

    def __init__(self, base: str, node: str) -> None:
        _delegate(base)
        self._parent = f"{base}/nova-{node}"
        self._make_parent()
        # The top of the hierarchy has no such file, the groups below have it where swap is accounted.
        self._swap = os.path.exists(f"{self._parent}/memory.swap.max")

    def _make_parent(self) -> None:
        os.makedirs(self._parent, exist_ok=True)
        _delegate(self._parent)

    def create(self, name: str) -> GroupV2:
        try:
            return GroupV2(f"{self._parent}/{name}", self._swap)
        except FileNotFoundError:
            self._make_parent()
            return GroupV2(f"{self._parent}/{name}", self._swap)

    def sweep(self) -> list[str]:
        names = self.leftovers()
        for name in names:
            kill = f"{self._parent}/{name}/cgroup.kill"
            if os.path.exists(kill):
                _write(kill, "1")
            else:
                _kill_all(f"{self._parent}/{name}/cgroup.procs")
        return [name for name in names if _rmdir(f"{self._parent}/{name}")]

    def leftovers(self) -> list[str]:
        return sorted(_folders(self._parent))

    def close(self) -> None:
        _rmdir(self._parent)


def _delegate(folder: str) -> None:
    """Give the children of ``folder`` the controllers. A group that has processes of its own cannot; they move aside."""
    control = f"{folder}/cgroup.subtree_control"
    missing = [name for name in CONTROLLERS if name not in _read(control).split()]
    if not missing:
        return
    wanted = " ".join(f"+{name}" for name in missing)
    try:
        _write(control, wanted)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        leaf = f"{folder}/nova-host"
        os.makedirs(leaf, exist_ok=True)
        for pid in _read(f"{folder}/cgroup.procs").split():
            _write(f"{leaf}/cgroup.procs", pid)
        _write(control, wanted)


class NoGroup:
    oom_event: int | None = None

    def join_files(self) -> list[int]:
        return []

    def entry_files(self) -> list[int]:
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
