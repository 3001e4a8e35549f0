"""Firecracker in the conformance suite, where a guest's kernel is given that boots on this host.

A hypervisor below may let Firecracker start machines in which no ordinary kernel comes up; there the host's side is tested
with a kernel of our own (``test_backend.py``, ``test_snapshots.py``), and the suite needs one that does.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nova.execution.backends.base import Backend
from nova.execution.backends.firecracker.backend import FirecrackerBackend
from nova.execution.backends.firecracker.leftovers import jail_names, processes
from nova.execution.backends.firecracker.options import FirecrackerOptions, leases_node
from nova.execution.backends.vm.leases import DEFAULT_FOLDER, Leases
from tests import imaging
from tests.backends.firecracker import programs
from tests.backends.harness import write_code

KERNEL = "FIRECRACKER_TEST_KERNEL"
"""An uncompressed kernel that boots here, an ``initrd`` beside it if it needs one."""
_JAILS = Path("/run/nova-test-jails")


class Case:
    name = "firecracker"
    runtime = "python"
    runtime_version = ""
    cycles = 50

    def missing(self) -> str:
        if reason := programs.missing():
            return reason
        kernel = os.environ.get(KERNEL)
        if not kernel:
            return f"{KERNEL} names no kernel that is known to boot on this host"
        return imaging.obstacle("ext4")

    @asynccontextmanager
    async def backend(self, folder: Path, node: str = "conf") -> AsyncIterator[Backend]:
        imaging.image(self.runtime, "ext4")
        options = FirecrackerOptions(
            node=node,
            programs=programs.programs(),
            kernel=Path(os.environ[KERNEL]),
            jail_dir=_JAILS,
            snapshot_dir=folder / "snapshots",
            log_dir=folder / "logs",
            runtimes=(self.runtime,),
        )
        made = FirecrackerBackend(options, imaging.images())
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    def artifact(self, code: str, folder: Path) -> Path:
        return write_code(code, folder)

    def leftovers(self, node: str) -> list[str]:
        leases = Leases(DEFAULT_FOLDER, leases_node(node))
        return [
            *(f"process {pid}" for pid in processes(programs.programs(), node)),
            *jail_names(_JAILS, programs.programs(), node),
            *(f"{kind} {number}" for kind in ("address", "vm-uid") for number in leases.held(kind)),
        ]
