"""Stand-ins for the pool's surroundings, driven by hand: a backend whose boots and calls end when the test says so."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from nova.domain.call import CallRequest, StartSource
from nova.domain.function import FunctionSnapshot, Limits, NetworkPolicy
from nova.domain.identity import Identity, Scope
from nova.errors import FunctionError
from nova.execution.backends.base import (
    Capabilities,
    CommandResult,
    CommandSpec,
    InitDone,
    InitFailed,
    InitSpec,
    Instance,
    InstanceSpec,
    InstanceStats,
    WorkerCall,
    WorkerResult,
)
from nova.execution.snapshots import pool_key
from nova.ids import new_id

OPERATOR = Identity("operator", frozenset(), platform=True)


class FakeChannel:
    """Answers at once with ``{"pid": …}`` unless the test took over: see :attr:`hold` and :meth:`answer`."""

    def __init__(self, backend: "FakeBackend") -> None:
        self.backend = backend
        self.usable = True
        self.alive = True
        self.calls: list[WorkerCall] = []
        self.pending: dict[str, asyncio.Future[WorkerResult]] = {}
        self.peak = 0
        self._lost: list[Callable[[], None]] = []

    async def init(self, spec: InitSpec) -> InitDone:
        self.backend.inits.append(spec)
        await self.backend.init_gate()
        if self.backend.init_error is not None:
            raise InitFailed(self.backend.init_error, stdout="loading\n")
        return InitDone(1000, spec.concurrency, stdout=self.backend.init_prints)

    def call(self, call: WorkerCall) -> Awaitable[WorkerResult]:
        assert self.usable, "a call was sent to an instance that is gone"
        self.calls.append(call)
        future: asyncio.Future[WorkerResult] = asyncio.get_running_loop().create_future()
        if self.backend.hold:
            self.pending[call.request_id] = future
            self.peak = max(self.peak, len(self.pending))
            future.add_done_callback(lambda done: self._ended(call, done))
        else:
            future.set_result(WorkerResult(call.payload, None))
        return future

    def _ended(self, call: WorkerCall, future: "asyncio.Future[WorkerResult]") -> None:
        self.pending.pop(call.request_id, None)
        if future.cancelled():
            self.lose()

    def answer(self, request_id: str, result: WorkerResult | None = None) -> None:
        future = self.pending[request_id]
        if not future.done():
            future.set_result(result or WorkerResult(b'"ok"', None))

    def lose(self, error: str = "Nova.InstanceLost") -> None:
        if not self.usable:
            return
        self.usable = False
        for future in list(self.pending.values()):
            if not future.done():
                future.set_result(WorkerResult(None, FunctionError(error, "gone")))
        for callback in self._lost:
            callback()

    async def ping(self, timeout_s: float) -> bool:
        self.backend.pings += 1
        return self.alive and self.usable

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._lost.append(callback)


class FakeInstance:
    def __init__(self, backend: "FakeBackend", spec: InstanceSpec) -> None:
        self.instance_id = spec.instance_id
        self.source: StartSource = "template"
        self.runtime_us = 0
        self.spec = spec
        self.channel = FakeChannel(backend)


class FakeBackend:
    """Counts what exists. ``gate`` set to an unset Event holds boots back; ``error`` makes them fail."""

    name = "fake"

    def __init__(self) -> None:
        self.hold = False
        self.gate: asyncio.Event | None = None
        self.slow_init: asyncio.Event | None = None
        self.error: Exception | None = None
        self.init_error: FunctionError | None = None
        self.init_prints = ""
        self.inits: list[InitSpec] = []
        self.live: dict[str, FakeInstance] = {}
        self.stopped: list[tuple[str, str]] = []
        self.rested: list[str] = []
        self.restless = False
        self.creating = 0
        self.created = 0
        self.peak = 0
        self.peak_creating = 0
        self.pings = 0

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def rest(self, instance: Instance) -> bool:
        if self.restless:
            return False
        self.rested.append(instance.instance_id)
        return True

    async def capabilities(self) -> Capabilities:
        kinds = ("memory", "cpu", "pids", "disk", "network_rules", "net_io", "read_only_root", "user", "seccomp")
        return Capabilities(True, "", "process", dict.fromkeys(kinds, "hard"))

    def default_network(self) -> NetworkPolicy:
        return NetworkPolicy()

    async def create(self, spec: InstanceSpec) -> FakeInstance:
        self.creating += 1
        self.created += 1
        self.peak_creating = max(self.peak_creating, self.creating)
        self.peak = max(self.peak, len(self.live) + self.creating)
        try:
            if self.gate is not None:
                await self.gate.wait()
            else:
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.creating -= 1
        instance = self.live[spec.instance_id] = FakeInstance(self, spec)
        return instance

    async def init_gate(self) -> None:
        if self.slow_init is not None:
            await self.slow_init.wait()

    async def stop(self, instance: Instance, *, reason: str) -> None:
        gone = self.live.pop(instance.instance_id, None)
        await asyncio.sleep(0)
        if gone is not None:
            self.stopped.append((instance.instance_id, reason))
            gone.channel.lose()

    async def stats(self, instance: Instance) -> InstanceStats:
        return InstanceStats()

    async def run(self, command: CommandSpec) -> CommandResult:
        raise AssertionError("nothing runs commands here")

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        return []

    @property
    def channels(self) -> list[FakeChannel]:
        return [instance.channel for instance in self.live.values()]

    def answer_all(self) -> int:
        """Let every call in flight end well; returns how many there were."""
        waiting = [(channel, request_id) for channel in self.channels for request_id in list(channel.pending)]
        for channel, request_id in waiting:
            channel.answer(request_id)
        return len(waiting)


class FakeArtifacts:
    async def materialise(self, digest: str) -> Path:
        return Path("/nonexistent") / digest


class OneBackend:
    def __init__(self, backend: Any) -> None:
        self.backend = backend

    async def select(self, snapshot: FunctionSnapshot) -> Any:
        return self.backend


def make_snapshot(name: str = "hello", version: int = 1, **changes: Any) -> FunctionSnapshot:
    """A plausible snapshot; ``changes`` replace its fields."""
    plain = FunctionSnapshot(
        scope=Scope(),
        function_id=f"id-of-{name}",
        name=name,
        version=version,
        runtime="python",
        runtime_version="3.11",
        handler="main.handler",
        entry="main.py",
        entry_kind="handler",
        mode="persistent",
        timeout_s=30,
        concurrency=1,
        limits=Limits(),
        network=NetworkPolicy(),
        env={},
        artifact="sha256:" + "0" * 64,
        compile_status="not_required",
        build_id=None,
        backend="auto",
        max_replicas=100,
        idle_ttl_s=None,
        function_url=True,
    )
    snapshot = replace(plain, **changes)
    return replace(snapshot, pool_key=pool_key(snapshot))


def make_call(name: str = "hello", payload: bytes = b"{}", **changes: Any) -> CallRequest:
    values: dict[str, Any] = {
        "request_id": new_id(),
        "scope": Scope(),
        "function": name,
        "payload": payload,
        "identity": OPERATOR,
        "received": 0.0,
    }
    return CallRequest(**{**values, **changes})
