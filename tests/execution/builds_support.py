"""What the tests of builds share: functions deployed straight into the store, and a way to wait for a build's end."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nova.agent.config import WorkerLaunch
from nova.domain.identity import Scope
from nova.domain.tree import FILE, SourceFile, Tree
from nova.domain.version import FunctionSettings, VersionConfig
from nova.execution.backends.base import CommandResult, CommandSpec
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from nova.store import builds
from nova.store.blobs import BlobStore
from nova.store.builds import BuildRecord, BuildStore
from nova.store.db import Database
from nova.store.functions import FunctionRecord, FunctionStore
from nova.store.listen import Channel, Listener
from nova.store.versions import VersionStore

SCOPE = Scope()
CONFIG = VersionConfig(runtime="python", handler="main.handler", entry="main.py", entry_kind="handler")
NODE_CONFIG = VersionConfig(runtime="node", handler="index.handler", entry="index.js", entry_kind="handler")


def tree(files: Mapping[str, str]) -> Tree:
    return Tree(SourceFile(path, FILE, text.encode()) for path, text in files.items())


@dataclass
class Deployer:
    """Writes functions and versions as the control plane does."""

    db: Database

    async def deploy(
        self,
        name: str,
        files: Mapping[str, str],
        *,
        scope: Scope = SCOPE,
        config: VersionConfig = CONFIG,
        activate: bool = True,
    ) -> str:
        """One more version of ``name``, with a build; the build's id."""
        functions, blobs = FunctionStore(self.db), BlobStore(self.db)
        versions = VersionStore(self.db, blobs)
        code = tree(files)
        async with self.db.transaction() as conn:
            found = await functions.lock(conn, scope, name)
            settings = FunctionSettings()
            function_id = found.id if found else await functions.insert(conn, scope, name, settings, "tester")
            assert function_id is not None
            version = await functions.take_number(conn, function_id)
            await versions.insert(
                conn,
                function_id,
                version,
                config=config,
                code_hash=code.code_hash,
                code_size=code.size,
                source_code=None,
                artifact=None,
                compile_status="pending",
                description="",
                created_by="tester",
            )
            await versions.put_tree(conn, function_id, version, code)
            live = found.live_version if found else None
            await functions.save(conn, function_id, settings=settings, head=version, live=live)
            return await builds.enqueue(conn, scope, function_id=function_id, version=version, activate=activate)

    async def function(self, name: str, scope: Scope = SCOPE) -> FunctionRecord:
        found = await FunctionStore(self.db).lookup(scope, name)
        assert found is not None
        return found


async def finished(listener: Listener, store: BuildStore, build_id: str, scope: Scope = SCOPE) -> BuildRecord:
    """The build, once it is over."""
    changed = asyncio.Event()
    listener.on(Channel.BUILDS, lambda payload: changed.set() if payload == build_id else None)
    async with asyncio.timeout(120):
        while True:
            changed.clear()
            record = await store.get(scope, build_id)
            if record.finished_at is not None:
                return record
            await changed.wait()


class Scripted:
    """A runner that runs nothing: it does what the test says. For what is not about isolation."""

    def __init__(self) -> None:
        self.commands: list[CommandSpec] = []
        self.release = asyncio.Event()
        self.release.set()
        self.result = CommandResult(0)

    async def run(self, command: CommandSpec) -> CommandResult:
        self.commands.append(command)
        command.output(b"installing\n")
        await self.release.wait()
        if "install" in command.argv:
            (code,) = [bind.source for bind in command.binds if bind.target == "/code"]
            (code / "deps" / "thing.py").write_text("value = 1\n")
        return self.result


class _NoInstances:
    """Builds need no worker of any runtime."""

    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        raise AssertionError((runtime, version))


@asynccontextmanager
async def sandbox() -> AsyncIterator[SandboxBackend]:
    run_dir = Path(tempfile.mkdtemp(prefix="nova-test-run-"))
    backend = SandboxBackend(SandboxOptions(run_dir=run_dir, node=f"t{run_dir.name[-6:]}"), _NoInstances())
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()
        shutil.rmtree(run_dir, ignore_errors=True)
