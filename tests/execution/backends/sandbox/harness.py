"""Real instances for tests: one backend, functions given as source text."""

import contextlib
import json
import os
import textwrap
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nova.agent.config import WorkerLaunch
from nova.domain.function import Limits, Mode, NetworkPolicy
from nova.execution.backends.base import InitSpec, Instance, InstanceSpec, WorkerCall, WorkerResult
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from nova.execution.backends.sandbox.cells import Cell

BOOTSTRAP = "nova.runtimes.python.bootstrap"
OFFLINE = NetworkPolicy(isolation_mode="strict")
ROOMY = Limits(memory_mb=256, vcpus=1)
FROM_SNAPSHOT = False
"""Whether :func:`load` gives instances that came from a function which is kept loaded."""


class PythonOnly:
    """Toolchains with nothing but the interpreter that runs the tests."""

    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        return WorkerLaunch("fork", BOOTSTRAP), ()


def options(folder: Path, **changes: Any) -> SandboxOptions:
    """A backend of its own: nothing it makes has the name of another's."""
    values: dict[str, Any] = {"run_dir": folder, "node": f"test-{uuid.uuid4().hex[:8]}", "modules": (BOOTSTRAP,)}
    return SandboxOptions(**(values | changes))


def write_code(folder: Path, source: str, name: str = "main.py") -> Path:
    """A code tree as the platform stores it: readable by every user."""
    code = folder / f"code-{uuid.uuid4().hex[:8]}"
    code.mkdir(mode=0o755)
    (code / name).write_text(textwrap.dedent(source))
    return code


@dataclass
class Function:
    """A loaded instance."""

    backend: SandboxBackend
    instance: Cell

    async def answer(self, event: Any = None, *, timeout_s: float = 10) -> WorkerResult:
        call = WorkerCall(
            request_id="r",
            payload=json.dumps(event).encode(),
            context=b'{"request_id": "r"}',
            deadline=time.monotonic() + timeout_s,
        )
        return await self.instance.channel.call(call)

    async def value(self, event: Any = None) -> Any:
        """What the handler returned; an error fails the test."""
        result = await self.answer(event)
        assert result.error is None, result.error
        assert result.output is not None
        return json.loads(result.output)

    async def stop(self) -> None:
        await self.backend.stop(self.instance, reason="test")


async def load(
    backend: SandboxBackend,
    folder: Path,
    source: str,
    *,
    limits: Limits = ROOMY,
    network: NetworkPolicy = OFFLINE,
    mode: Mode = "persistent",
    env: dict[str, str] | None = None,
) -> Function:
    """Deploy and load ``source`` (a module with ``handler``)."""
    spec, init = described(folder, source, limits, network, mode, env)
    instance = await (restore(backend, spec, init) if FROM_SNAPSHOT else backend.create(spec))
    assert isinstance(instance, Cell)
    await instance.channel.init(init)
    return Function(backend, instance)


def described(
    folder: Path,
    source: str,
    limits: Limits = ROOMY,
    network: NetworkPolicy = OFFLINE,
    mode: Mode = "persistent",
    env: dict[str, str] | None = None,
) -> tuple[InstanceSpec, InitSpec]:
    """What an instance for ``source`` is like, and what it is told to load."""
    code = write_code(folder, source)
    spec = InstanceSpec(uuid.uuid4().hex, "python", "3.11", code, limits, network)
    init = InitSpec(
        function_id="f",
        name="test",
        version=1,
        tenant="default",
        namespace="default",
        runtime="python",
        runtime_version="3.11",
        mode=mode,
        handler="main.handler",
        entry="main.py",
        entry_kind="handler",
        env=env or {},
        memory_mb=limits.memory_mb,
        timeout_s=30,
        concurrency=1,
        open_files=limits.open_files,
    )
    return spec, init


async def restore(backend: SandboxBackend, spec: InstanceSpec, init: InitSpec) -> Instance:
    """An instance from a snapshot that goes with it."""
    key = uuid.uuid4().hex
    await backend.snapshot(key, replace(spec, instance_id=uuid.uuid4().hex), init)
    instance = await backend.restore(key, spec)
    assert instance is not None
    assert instance.source == "snapshot"
    await backend.drop_snapshot(key)
    return instance


def pid_is_alive(pid: int) -> bool:
    """A zombie counts as dead."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> set[int]:
    """Every living process below ``pid``."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if stat[0] != "Z":
                parents[int(name)] = int(stat[1])
    found: set[int] = set()
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def zygotes(backend: SandboxBackend) -> list[int]:
    """What the launcher has forked and is in no place of its own: who forks instances, and once some rest who sees to that."""
    found = []
    for pid in descendants(backend._launcher.pid):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{backend._launcher.pid}/ns/pid"):
                found.append(pid)
    return found
