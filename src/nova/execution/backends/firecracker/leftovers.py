"""What a killed daemon of this node left: processes, jails, control groups, leases. Nothing of another node's is touched."""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nova.execution.backends.firecracker.jail import Programs, remove_jail
from nova.execution.backends.sandbox.cgroups import Groups
from nova.execution.backends.vm.leases import Leases

_END_S: Final = 5.0


def jail_names(jail_dir: Path, programs: Programs, node: str) -> list[str]:
    """The jails that are there."""
    folder = jail_dir / programs.firecracker.name
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(folder) if name.startswith(f"{node}-"))
    return []


def processes(programs: Programs, node: str) -> list[int]:
    """Of jailers and machines, by the names that they were given."""
    return [pid for pid, argv in _commands() if _is_of(argv, programs, node)]


def _commands() -> Iterator[tuple[int, list[str]]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
                yield int(entry), command.decode(errors="replace").split("\0")


def _is_of(argv: list[str], programs: Programs, node: str) -> bool:
    names = (programs.firecracker.name, programs.jailer.name)
    return Path(argv[0]).name in names and argv[1:2] == ["--id"] and argv[2].startswith(f"{node}-")


def sweep(jail_dir: Path, programs: Programs, node: str, groups: Groups, leases: Leases) -> list[str]:
    """Remove it all and say what it was. Blocking: a few milliseconds for each machine."""
    found = processes(programs, node)
    for pid in found:
        _end(pid)
    removed = [f"process {pid}" for pid in found]
    removed += [f"control group {name}" for name in groups.sweep()]
    for name in jail_names(jail_dir, programs, node):
        remove_jail(jail_dir / programs.firecracker.name / name)
        removed.append(f"jail {name}")
    # last: until here an address may be in use
    removed += [f"lease of {lease}" for lease in leases.release_all()]
    return removed


def _end(pid: int) -> None:
    """Kill and wait; a process of a dead daemon is no child of ours."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended = select.poll()
            ended.register(descriptor, select.POLLIN)
            ended.poll(_END_S * 1000)
        finally:
            os.close(descriptor)
