"""A real agent with real workers in plain processes of the current user: everything but the isolation."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nova
from nova.domain.function import FunctionSnapshot, Limits, NetworkPolicy
from nova.domain.identity import Scope
from nova.domain.stream import Sink
from nova.execution.backends.base import InitDone, InitSpec, WorkerCall, WorkerResult
from nova.execution.channel import DirectChannel
from nova.execution.channel_context import ContextEncoder
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_ends import DeathCause
from nova.execution.launch import launch_for
from nova.runtimes.registry import Runtimes

TOKEN = bytes(range(32))
CHILD = Path(__file__).with_name("child.py")
SOURCE = str(Path(nova.__file__).parent.parent)
RUNTIMES = Runtimes()


def base_interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def spawn_agent(
    runtime: str, code: Path, *, hello_deadline_s: float = 60.0, reload_dir: Path | None = None, relayed: bool = False
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """An agent process and the host's end of its control connection."""
    resolved = RUNTIMES.resolve(runtime)
    config = {
        "token_sha256": hashlib.sha256(TOKEN).hexdigest(),
        "instance_id": "instance-1",
        "runtime": resolved.runtime,
        "worker": launch_for(resolved).as_dict(),
        "code_dir": str(code),
        "reload_dir": None if reload_dir is None else str(reload_dir),
        "hello_deadline_s": hello_deadline_s,
        "relayed": relayed,
    }
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [base_interpreter(), "-I", "-S", str(CHILD), SOURCE, str(theirs.fileno()), json.dumps(config)],
            pass_fds=[theirs.fileno()],
            env={},
            start_new_session=True,
        )
    return process, ours


def snapshot_of(spec: InitSpec) -> FunctionSnapshot:
    return FunctionSnapshot(
        scope=Scope(spec.tenant, spec.namespace),
        function_id=spec.function_id,
        name=spec.name,
        version=spec.version,
        runtime=spec.runtime,
        runtime_version=spec.runtime_version,
        handler=spec.handler,
        entry=spec.entry,
        entry_kind=spec.entry_kind,
        mode=spec.mode,
        timeout_s=spec.timeout_s,
        concurrency=spec.concurrency,
        limits=Limits(memory_mb=spec.memory_mb),
        network=NetworkPolicy(),
        env=spec.env,
        artifact="",
        compile_status="not_required",
        build_id=None,
        backend="sandbox",
        max_replicas=1,
        idle_ttl_s=None,
        function_url=False,
    )


def spec_of(runtime: str, **changes: Any) -> InitSpec:
    manifest = RUNTIMES.resolve(runtime).manifest
    values: dict[str, Any] = {
        "function_id": "0199aaaa-0000-7000-8000-000000000001",
        "name": "hello",
        "version": 3,
        "tenant": "acme",
        "namespace": "prod",
        "runtime": manifest.id,
        "runtime_version": RUNTIMES.resolve(runtime).version,
        "mode": "persistent",
        "handler": manifest.default_handler,
        "entry": manifest.inline_name(manifest.default_handler),
        "entry_kind": "handler",
        "env": {},
        "memory_mb": 128,
        "timeout_s": 30,
        "concurrency": 1,
        "open_files": 256,
    }
    return InitSpec(**(values | changes))


@dataclass
class Guest:
    """One instance without isolation, loaded or about to be."""

    process: subprocess.Popen[bytes]
    channel: DirectChannel
    spec: InitSpec
    killed: bool = False
    contexts: ContextEncoder = field(init=False)
    calls: int = 0

    def __post_init__(self) -> None:
        self.contexts = ContextEncoder(snapshot_of(self.spec))

    async def init(self) -> InitDone:
        return await self.channel.init(self.spec)

    def begin(
        self,
        event: Any = None,
        *,
        raw: bytes | None = None,
        request_id: str | None = None,
        timeout_s: float = 20.0,
        traceparent: str | None = None,
        sink: Sink | None = None,
        **stream: Any,
    ) -> "asyncio.Future[WorkerResult]":
        self.calls += 1
        call_id = request_id or f"0199aaaa-0000-7000-8000-{self.calls:012d}"
        deadline_ms = int((time.time() + timeout_s) * 1000)
        awaitable = self.channel.call(
            WorkerCall(
                request_id=call_id,
                payload=json.dumps(event).encode() if raw is None else raw,
                context=self.contexts.encode(call_id, deadline_ms, traceparent, streaming=sink is not None),
                deadline=time.monotonic() + timeout_s,
                sink=sink,
                **stream,
            )
        )
        assert isinstance(awaitable, asyncio.Future)
        return awaitable

    async def call(self, event: Any = None, **options: Any) -> WorkerResult:
        return await self.begin(event, **options)

    async def value(self, event: Any = None, **options: Any) -> Any:
        """The output of a call that must succeed."""
        result = await self.begin(event, **options)
        assert result.error is None, result
        assert result.output is not None
        return json.loads(result.output)

    async def failure(self, event: Any = None, **options: Any) -> Any:
        """The error of a call that must fail."""
        result = await self.begin(event, **options)
        assert result.error is not None, result
        return result.error

    def kill(self) -> None:
        self.killed = True
        kill_session(self.process.pid)


def kill_session(session: int) -> None:
    """SIGKILL the agent and all that it started, which is what the end of a pid namespace does."""
    for pid in descendants(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """``root`` and every process below it."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as children:
            found += [int(child) for child in children.read().split()]
    return found


@contextlib.asynccontextmanager
async def guest(
    runtime: str,
    files: Mapping[str, str | bytes],
    folder: Path,
    *,
    cause: DeathCause = "unknown",
    init_timeout_s: float = 10.0,
    reload_dir: Path | None = None,
    through: Callable[[socket.socket], Awaitable[socket.socket]] | None = None,
    **changes: Any,
) -> AsyncIterator[Guest]:
    """A connected instance whose code is ``files`` below ``folder``; nothing of it is left afterwards.

    ``through``: what makes the host's control socket of the agent's, for agents that are not beside the host.
    """
    write_files(folder, files)
    process, control = spawn_agent(runtime, folder, reload_dir=reload_dir, relayed=through is not None)
    deadlines = Deadlines()
    made: list[Guest] = []

    async def death_cause() -> DeathCause:
        return cause

    def kill() -> None:
        made[0].kill()

    try:
        if through is not None:
            control = await through(control)
        channel = await DirectChannel.connect(
            control,
            TOKEN,
            "instance-1",
            kill=kill,
            death_cause=death_cause,
            deadlines=deadlines,
            init_timeout_s=init_timeout_s,
        )
        made.append(Guest(process, channel, spec_of(runtime, **changes)))
        yield made[0]
    finally:
        if made:
            made[0].channel.close()
        control.close()
        deadlines.close()
        kill_session(process.pid)
        process.wait()


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.name == "bootstrap":
            path.chmod(0o755)
