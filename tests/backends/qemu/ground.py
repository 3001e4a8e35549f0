"""Machines by QEMU for tests, with the kernel and the images that are built once for this user."""

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

from nova.execution.backends.qemu.backend import QemuBackend
from nova.execution.backends.qemu.options import QemuOptions
from nova.execution.backends.vm import codedrive
from nova.execution.images.kernel import Kernels
from tests import imaging

NODE_MARK: Final = "guest=nova-{node}-"
"""In the command line of each machine of a node."""
_SERIAL: Final = itertools.count()
_GROUPS: Final = Path("/sys/fs/cgroup")


def missing() -> str:
    """Why there can be no machines here; empty when there can."""
    if shutil.which("qemu-system-x86_64") is None:
        return "not installed: qemu-system-x86"
    if absent := codedrive.missing_tools():
        return f"not installed: {absent}"
    return imaging.obstacle("ext4")


def options(folder: Path, node: str, **more: Any) -> QemuOptions:
    imaging.kernel()
    fixed: dict[str, Any] = {
        "node": node,
        "home": folder / "qemu",
        "kernels": Kernels(imaging.cache() / "kernel"),
        "snapshot_dir": folder / "snapshots",
        "leases": folder / "leases",
        "runtimes": ("python", "node"),
        "accel": "tcg",
        "templates": False,
        **_network(),
    }
    return QemuOptions(**(fixed | more))


def _network() -> dict[str, str]:
    """A bridge of its own: backends of other tests have other tables of leases."""
    number = (os.getpid() * 16 + next(_SERIAL)) % 4096
    return {"bridge": f"nq{number:x}", "subnet": f"172.{16 + number // 256}.{number % 256}.0/24"}


def backend(folder: Path, node: str, **more: Any) -> QemuBackend:
    """Not started yet."""
    imaging.image("python", "ext4")
    return QemuBackend(options(folder, node, **more), imaging.images())


def processes(node: str) -> list[str]:
    """Machines of a node that run."""
    mark = NODE_MARK.format(node=node).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if mark in line and b"setpriv" not in line.split(b"\0")[0]:
                found.append(f"process {entry.name}")
    return found


def groups(node: str) -> list[str]:
    """Control groups of a node's machines, by name."""
    pattern = f"nova-{node}-qemu"
    parents = [_GROUPS / pattern, *_GROUPS.glob(f"*/{pattern}")]
    return sorted(
        {f"group {path.name}" for parent in parents if parent.is_dir() for path in parent.iterdir() if path.is_dir()}
    )


def files(folder: Path) -> list[str]:
    """Drives of machines and leases of users that are there."""
    left = [f"drives {path.name}" for path in folder.glob("qemu/machines/*")]
    table = folder / "leases" / "table"
    taken = json.loads(table.read_text()) if table.exists() else {}
    for kind, numbers in taken.items():
        if not kind.startswith("bridge "):  # it stays as long as the backend
            left += [f"{kind} {number}" for number in numbers]
    return left
