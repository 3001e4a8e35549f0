"""The backend on the real Firecracker, where no guest's kernel comes up to user space: machines run a kernel of our own, and
the agent of each is a process beside it. All that the host does is real; :class:`Case` of the suite needs real guests."""

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from nova.domain.function import Limits, NetworkPolicy
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.firecracker.backend import FirecrackerBackend
from nova.execution.backends.firecracker.jail import API_SOCKET
from nova.execution.backends.firecracker.leftovers import jail_names, processes
from nova.execution.backends.firecracker.machine import Machine
from nova.execution.backends.firecracker.options import FirecrackerOptions, leases_node
from nova.execution.backends.vm.leases import Leases
from nova.execution.images import Images
from nova.execution.launch import launch_for
from nova.ids import new_id
from tests.agent.harness import CHILD, RUNTIMES, SOURCE, base_interpreter
from tests.backends.firecracker import programs
from tests.backends.vm.ground import Space

GROUPS = Path("/sys/fs/cgroup")
OFFLINE = NetworkPolicy(isolation_mode="strict")


@dataclass
class Ground:
    """A folder with a short name, a network namespace as the host's, and agents that stand in for guests'."""

    folder: Path
    space: Space
    options: FirecrackerOptions
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """the kernel command lines of machines"""

    @asynccontextmanager
    async def backend(self, node: str = "", **changes: Any) -> AsyncIterator[FirecrackerBackend]:
        options = replace(self.options, node=node or self.options.node, **changes)
        made = FirecrackerBackend(options, self.images(), reach=self.reach, home=self.space.descriptor)
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    def images(self) -> Images:
        """One empty root for every runtime."""
        rootfs = self.folder / "rootfs.ext4"
        if not rootfs.exists():
            rootfs.write_bytes(bytes(1 << 20))
        found = SimpleNamespace(path=rootfs, digest="0" * 12, runtime="python", version="3.11")
        launch = launch_for(RUNTIMES.resolve("python"))
        return cast(
            Images, SimpleNamespace(find=lambda *_: found, require=lambda *_: found, launch=lambda _runtime: launch)
        )

    async def reach(self, machine: Machine, port: int) -> socket.socket:
        """An agent that knows what the machine's command line says, and no more."""
        # a machine that comes from a snapshot was told nothing: its agent is the one of the machine that was kept
        line = ask(machine.jail.root / API_SOCKET, "/vm/config")["boot-source"]["boot_args"] or self.told[-1]
        self.told.append(line)
        words = dict(word.partition("=")[::2] for word in line.split())
        assert words["nova.listen"] == f"vsock:{port}"
        return self._agent(words["nova.token_sha256"], words["nova.instance_id"])

    def _agent(self, digest: str, instance_id: str) -> socket.socket:
        resolved = RUNTIMES.resolve("python")
        config = {
            "token_sha256": digest,
            "instance_id": instance_id,
            "runtime": resolved.runtime,
            "worker": launch_for(resolved).as_dict(),
            "code_dir": str(self.folder / "code"),
            "reload_dir": None,
            "hello_deadline_s": 20,
        }
        ours, theirs = socket.socketpair()
        with theirs:
            command = [base_interpreter(), "-I", "-S", str(CHILD), SOURCE, str(theirs.fileno()), json.dumps(config)]
            self.agents.append(subprocess.Popen(command, pass_fds=[theirs.fileno()], env={}))
        return ours

    def spec(self, **changes: Any) -> InstanceSpec:
        limits = Limits(memory_mb=32, tmp_mb=16)
        return replace(
            InstanceSpec(new_id(), "python", "3.11", self.folder / "code", limits, NetworkPolicy()), **changes
        )

    def leftovers(self, node: str = "") -> list[str]:
        """All that there is of a node's machines on this host."""
        node = node or self.options.node
        leases = Leases(self.options.leases, leases_node(node))
        groups = [*GROUPS.glob(f"*/nova-{node}-fc/*"), *GROUPS.glob(f"nova-{node}-fc/*")]
        ports = [name for name in self.space.do(_interfaces) if "-" in name]
        return [
            *(f"process {pid}" for pid in processes(self.options.programs, node)),
            *(f"jail {name}" for name in jail_names(self.options.jail_dir, self.options.programs, node)),
            *(f"group {path}" for path in groups if path.is_dir()),
            *(f"port {name}" for name in ports if int(name.rpartition("-")[2], 16) in leases.held("address")),
            *(f"{kind} {number}" for kind in ("address", "vm-uid") for number in leases.held(kind)),
        ]

    def ports(self) -> list[str]:
        """The bridge's, of every node."""
        return [name for name in self.space.do(_interfaces) if name.startswith("novabr0-")]


def _interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def options_in(folder: Path) -> FirecrackerOptions:
    return FirecrackerOptions(
        node=f"fc{secrets.token_hex(3)}",
        programs=programs.programs(),
        kernel=folder / "vmlinux",
        jail_dir=folder / "jails",
        snapshot_dir=folder / "snapshots",
        log_dir=folder / "logs",
        runtimes=("python",),
        leases=folder / "leases",
        boot_timeout_s=20,
        templates=False,
    )


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    folder = Path(f"/tmp/nova-fc-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o755)
    (folder / "code").mkdir()
    (folder / "code" / "main.py").write_text("def handler(event):\n    return event\n")
    space = Space()
    programs.kernel(folder)
    made = Ground(folder, space, options_in(folder))
    try:
        yield made
    finally:
        for agent in made.agents:
            agent.kill()
            agent.wait()
        space.close()
        shutil.rmtree(folder)


def ask(path: Path, what: str) -> Any:
    """One GET, as a plain client would send it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(f"GET {what} HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data or not data.endswith(b"}"):
            data += sock.recv(65536)
    return json.loads(data.partition(b"\r\n\r\n")[2])
