"""Functions that are kept loaded on this node: which ones, for how long, and what became of them.

A function whose code took long to load is loaded once more in the background, in an instance that serves nobody; the next
cold start comes from there. Whatever changes the pool's key (code, configuration, environment) makes it useless.
"""

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, Protocol

import structlog

from nova.clock import Clock
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.admission import NodeMemory
from nova.execution.backends.base import (
    Backend,
    InitFailed,
    InitSpec,
    Instance,
    InstanceSpec,
    SnapshotRefused,
    Snapshotter,
)
from nova.ids import new_id
from nova.service import Background

log = structlog.get_logger(__name__)

SLOW_IMPORT_US = 15_000
"""What is imported faster comes from a template in about the time that a restored instance takes. Only the import counts:
on a busy machine the rest takes long for every function."""
MOST = 32
"""Functions kept loaded at once; the one that was used longest ago makes place."""
IDLE_S = 600.0
"""One that no instance came from for so long is dropped."""
SWEEP_S = 30.0
REMEMBER = 1000
"""Functions whose snapshot was refused and is not tried again."""

State = Literal["making", "ready", "refused"]


class SnapshotEvents(Protocol):
    """Who counts restored instances. Must not block or raise."""

    def snapshot_restored(self, backend: str, took_us: int) -> None: ...


@dataclass(slots=True, eq=False)
class KeptFunction:
    """``snapshot.pool_key`` is its key. ``reason`` says why it was refused."""

    snapshot: FunctionSnapshot
    backend: Backend
    spec: InstanceSpec
    created_at: datetime
    used: float
    state: State = "making"
    reason: str = ""
    hits: int = 0
    memory_bytes: int = 0


class Sealer:
    """Implements ``Kept`` of the boots. One snapshot is made at a time."""

    def __init__(
        self,
        clock: Clock,
        events: SnapshotEvents,
        memory: NodeMemory | None = None,
        *,
        slow_import_us: int = SLOW_IMPORT_US,
        most: int = MOST,
    ) -> None:
        self._clock = clock
        self._events = events
        self._memory = memory or NodeMemory()
        self._slow_import_us = slow_import_us
        self._most = most
        self._kept: dict[str, KeptFunction] = {}
        self._turn = asyncio.Lock()
        self._tasks = Background("snapshots")

    async def start(self) -> None:
        self._tasks.spawn("sweep", self._sweep_often())

    async def close(self) -> None:
        await self._tasks.close()
        for kept in list(self._kept.values()):
            await self._drop(kept)

    # -- boots ---------------------------------------------------------------------------------------------------

    async def restore(self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec) -> Instance | None:
        kept = self._kept.get(snapshot.pool_key)
        if kept is None or kept.state != "ready" or snapshot.snapshot == "off" or not isinstance(backend, Snapshotter):
            return None
        instance = await backend.restore(snapshot.pool_key, spec)
        if instance is None:
            await self._drop(kept)
        return instance

    def restored(self, backend: Backend, snapshot: FunctionSnapshot, took_us: int) -> None:
        if (kept := self._kept.get(snapshot.pool_key)) is not None:
            kept.hits += 1
            kept.used = self._clock.monotonic()
        self._events.snapshot_restored(backend.name, took_us)

    async def failed(self, backend: Backend, snapshot: FunctionSnapshot, reason: str) -> None:
        if (kept := self._kept.get(snapshot.pool_key)) is not None:
            self._refuse(kept, f"a restored instance did not start: {reason}")
            if isinstance(backend, Snapshotter):
                await backend.drop_snapshot(snapshot.pool_key)

    def loaded(self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec, import_us: int) -> None:
        worthwhile = import_us >= self._slow_import_us and snapshot.snapshot == "auto"
        if worthwhile and snapshot.pool_key not in self._kept and not _obstacle(backend, snapshot):
            self.begin(backend, snapshot, spec)

    # -- making and dropping -------------------------------------------------------------------------------------

    def begin(self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec) -> KeptFunction:
        """Make one in the background, unless there is one. Raises NovaError ``unsupported`` where there can be none."""
        if snapshot.snapshot == "off":
            raise NovaError("unsupported", f"snapshot: it is off for version {snapshot.version} of {snapshot.name}")
        if reason := _obstacle(backend, snapshot):
            raise NovaError("unsupported", f"no snapshot: {reason}")
        kept = self._kept.get(snapshot.pool_key)
        if kept is None or kept.state == "refused":
            own = replace(spec, instance_id=new_id())
            kept = KeptFunction(snapshot, backend, own, self._clock.now(), self._clock.monotonic())
            self._kept[snapshot.pool_key] = kept
            self._tasks.spawn("make", self._make(kept))
        return kept

    async def _make(self, kept: KeptFunction) -> None:
        backend, snapshot = kept.backend, kept.snapshot
        assert isinstance(backend, Snapshotter)
        async with self._turn:
            if self._kept.get(snapshot.pool_key) is not kept:
                return
            try:
                await backend.snapshot(snapshot.pool_key, kept.spec, InitSpec.of(snapshot))
            except SnapshotRefused as refused:
                self._refuse(kept, str(refused))
            except InitFailed as failed:
                self._refuse(kept, f"it did not load: {failed.error.message}")
            except NovaError as error:  # a busy node: the next slow load tries again
                self._forget(kept)
                log.warning("no snapshot could be made", function=snapshot.name, reason=error.detail)
            else:
                await self._made(kept, backend)

    async def _made(self, kept: KeptFunction, backend: Snapshotter) -> None:
        key = kept.snapshot.pool_key
        if self._kept.get(key) is not kept:  # dropped meanwhile
            await backend.drop_snapshot(key)
            return
        kept.memory_bytes = await backend.snapshot_memory(key)
        kept.state, kept.used = "ready", self._clock.monotonic()
        log.info("a function is kept loaded", function=kept.snapshot.name, version=kept.snapshot.version)
        await self._make_room()

    def _refuse(self, kept: KeptFunction, reason: str) -> None:
        kept.state, kept.reason, kept.memory_bytes = "refused", reason, 0
        log.info("a function cannot be kept loaded", function=kept.snapshot.name, reason=reason)
        refused = [other for other in self._kept.values() if other.state == "refused"]
        for other in refused[:-REMEMBER]:
            self._forget(other)

    def _forget(self, kept: KeptFunction) -> None:
        if self._kept.get(kept.snapshot.pool_key) is kept:
            del self._kept[kept.snapshot.pool_key]

    async def _drop(self, kept: KeptFunction) -> None:
        self._forget(kept)
        if isinstance(kept.backend, Snapshotter):
            await kept.backend.drop_snapshot(kept.snapshot.pool_key)

    async def drop(self, scope: Scope, function: str, version: int | None = None, keep: Collection[str] = ()) -> int:
        """Drop those of a function, or of one version, whose keys are not in ``keep``; returns how many."""
        found = [
            kept
            for kept in self.of(scope, function)
            if version in (None, kept.snapshot.version) and kept.snapshot.pool_key not in keep
        ]
        for kept in found:
            await self._drop(kept)
        return len(found)

    # -- what is there -------------------------------------------------------------------------------------------

    def of(self, scope: Scope, function: str | None = None) -> list[KeptFunction]:
        """Newest first."""
        found = [
            kept
            for kept in self._kept.values()
            if kept.snapshot.scope == scope and function in (None, kept.snapshot.name)
        ]
        return sorted(found, key=lambda kept: (kept.created_at, kept.spec.instance_id), reverse=True)

    # -- the idle ------------------------------------------------------------------------------------------------

    async def _sweep_often(self) -> None:
        while True:
            await self._clock.sleep(SWEEP_S)
            with contextlib.suppress(NovaError):
                await self.sweep()

    async def sweep(self) -> None:
        """Drop what nobody used for long, and the one used longest ago when memory is short."""
        now = self._clock.monotonic()
        for kept in [kept for kept in self._ready() if now - kept.used >= IDLE_S]:
            await self._drop(kept)
        if self._memory.low(now) and (ready := self._ready()):
            await self._drop(ready[0])

    async def _make_room(self) -> None:
        for kept in self._ready()[: -self._most]:
            await self._drop(kept)

    def _ready(self) -> list[KeptFunction]:
        """Used longest ago first."""
        return sorted((kept for kept in self._kept.values() if kept.state == "ready"), key=lambda kept: kept.used)


def _obstacle(backend: Backend, snapshot: FunctionSnapshot) -> str:
    """Why this backend cannot keep this function loaded, as far as is known before trying."""
    if not isinstance(backend, Snapshotter):
        return f"the backend {backend.name} has none"
    if snapshot.entry_kind == "script":
        return "a script is run anew for each call"
    if snapshot.mounts:
        return "what a function loads from its volumes may be another thing the next time"
    return backend.snapshot_obstacle(snapshot.runtime)
