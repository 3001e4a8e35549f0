"""The execution plane as it really is: PostgreSQL, notifications, artifacts on disk and isolated instances."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nova.agent.config import WorkerLaunch
from nova.clock import SYSTEM_CLOCK
from nova.config import LimitSettings, PoolSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.function import CompileStatus, FunctionSnapshot
from nova.domain.identity import Scope
from nova.domain.tree import SourceFile, Tree, pack
from nova.domain.version import FunctionSettings, Recorded, VersionConfig
from nova.execution.artifacts import Artifacts
from nova.execution.backends.router import BackendRouter
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from nova.execution.boots import Booter
from nova.execution.executor import Executor
from nova.execution.fleet import InstanceFleet
from nova.execution.guest import GuestApi
from nova.execution.launch import launch_for
from nova.execution.rollover import Rollover, SteadyCatalog
from nova.execution.sealing import Sealer
from nova.execution.sealing_changes import SealedFunctions
from nova.execution.snapshots import SnapshotMaker
from nova.execution.volume_files import VolumeFiles
from nova.execution.volumes import Volumes
from nova.runtimes.registry import Runtimes
from nova.service import ServiceGroup
from nova.store.blobs import BlobStore
from nova.store.db import Database
from nova.store.functions import FunctionStore, announce
from nova.store.listen import Listener
from nova.store.state import StateStore
from nova.store.versions import VersionStore
from nova.store.volumes import VolumeHost
from tests.execution.fakes import make_call

RUNTIMES = Runtimes()


class Toolchains:
    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        resolved = RUNTIMES.resolve(runtime)
        return launch_for(resolved), resolved.host_paths


@dataclass
class RealStack:
    """What tests do with it: :meth:`deploy` code, :meth:`invoke` it, look at :attr:`records` and :attr:`fleet`."""

    db: Database
    functions: FunctionStore
    versions: VersionStore
    blobs: BlobStore
    catalog: SteadyCatalog
    fleet: InstanceFleet
    executor: Executor
    backend: SandboxBackend
    guests: GuestApi
    booter: Booter
    volumes: Volumes
    records: list[tuple[CallRequest, FunctionSnapshot, CallResult]] = field(default_factory=list)

    async def deploy(
        self,
        code: str,
        name: str = "hello",
        *,
        runtime: str = "python",
        entry: str = "main.py",
        entry_mode: int = 0o644,
        scope: Scope = Scope(),
        recorded: Recorded = Recorded(),
        files: Sequence[SourceFile] = (),
        **config: Any,
    ) -> int:
        """A new live version without dependencies; returns its number once this process knows of it."""
        tree = Tree([SourceFile(entry, entry_mode, code.encode()), *files])
        values: dict[str, Any] = {"handler": "main.handler", "entry_kind": "handler", **config}
        settings = FunctionSettings(recorded)
        status: CompileStatus = "not_required"
        async with self.db.transaction() as conn:
            found = await self.functions.lock(conn, scope, name)
            function_id = found.id if found else await self.functions.insert(conn, scope, name, settings, "test")
            assert function_id is not None
            number = await self.functions.take_number(conn, function_id)
            artifact = await self.blobs.put(pack(tree, entry), "application/x-tar", conn)
            await self.versions.insert(
                conn,
                function_id,
                number,
                config=VersionConfig(runtime=runtime, entry=entry, **values),
                code_hash=tree.code_hash,
                code_size=len(code),
                source_code=code,
                artifact=artifact,
                compile_status=status,
                description="",
                created_by="test",
            )
            generation = await self.functions.save(conn, function_id, settings=settings, head=number, live=number)
            await announce(conn, scope, name, generation)
        self.catalog.forget(scope, name)
        return number

    async def invoke(self, payload: bytes = b"{}", name: str = "hello", **call: Any) -> CallResult:
        values = {"received": SYSTEM_CLOCK.monotonic(), **call}
        return await self.executor.invoke(make_call(name, payload, **values))

    def invoking(self, payload: bytes = b"{}", name: str = "hello", **call: Any) -> "asyncio.Task[CallResult]":
        return asyncio.create_task(self.invoke(payload, name, **call))


@asynccontextmanager
async def real_stack(
    dsn: str, folder: Path, pool: PoolSettings | None = None, sealer: Sealer | None = None
) -> AsyncIterator[RealStack]:
    """Everything started; everything gone afterwards. Without ``sealer`` no function is kept loaded."""
    async with Database(dsn, max_conns=5) as db, ServiceGroup() as services:
        listener = await services.start(Listener(dsn))
        blobs = BlobStore(db)
        functions, versions = FunctionStore(db), VersionStore(db, blobs)
        run_dir = folder / "run"
        run_dir.mkdir()
        backend = SandboxBackend(
            SandboxOptions(
                run_dir=run_dir,
                node=f"t{abs(hash(folder)) % 100_000}",
                templates={("python", RUNTIMES.get("python").version): 2},
                modules=("nova.runtimes.python.bootstrap",),
            ),
            Toolchains(),
        )
        router = await services.start(BackendRouter([backend]))
        holder: list[InstanceFleet] = []
        artifacts = await services.start(
            Artifacts(blobs, folder / "artifacts", max_bytes=1 << 30, in_use=lambda: holder[0].artifacts())
        )
        catalog = SteadyCatalog(functions, versions, SnapshotMaker(RUNTIMES, router), listener)
        guests = GuestApi(StateStore(db, lambda: 64 << 20), LimitSettings())
        files = VolumeFiles(folder / "volumes")
        volumes = await services.start(Volumes(VolumeHost(db, "here", str(folder)), "here", files, SYSTEM_CLOCK))
        booter = Booter(artifacts, router, SYSTEM_CLOCK, guests, sealer, volumes)
        fleet = InstanceFleet(booter, pool or PoolSettings())
        volumes.wanted = lambda instance: fleet.give_up(instance, "volume", at_once=False)
        volumes.lost = lambda instance: fleet.give_up(instance, "volume lost", at_once=True)
        holder.append(fleet)
        stack: RealStack
        executor = Executor(catalog, fleet, lambda *done: stack.records.append(done), drain_s=1.0)
        stack = RealStack(db, functions, versions, blobs, catalog, fleet, executor, backend, guests, booter, volumes)
        guests.invoker = executor
        await services.start(executor)
        await services.start(Rollover(catalog, fleet))
        if sealer is not None:
            await services.start(SealedFunctions(sealer, catalog))
        yield stack
