"""Builds whose steps run nothing: order, caching, publishing, cancelling, failing. The real ones are in test_builds_real."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from nova.config import BuildSettings, QueueSettings
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.artifacts import Artifacts
from nova.execution.backends.base import CommandResult
from nova.execution.builds import Builder
from nova.execution.builds_service import BuildService
from nova.runtimes.registry import Runtimes
from nova.store.blobs import BlobStore
from nova.store.builds import BuildStore
from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.versions import VersionStore
from tests.execution.builds_support import SCOPE, Deployer, Scripted, finished

pytestmark = pytest.mark.anyio
FILES = {"main.py": "import thing\ndef handler(event):\n    return thing.value\n", "requirements.txt": "thing\n"}
Serve = Callable[[Scripted], AbstractAsyncContextManager[BuildService]]


@pytest.fixture(scope="session")
def runtimes() -> Runtimes:
    return Runtimes()


@pytest.fixture
async def listener(pg_dsn: str) -> AsyncIterator[Listener]:
    listener = Listener(pg_dsn)
    await listener.start()
    yield listener
    await listener.close()


@pytest.fixture
def serve(database: Database, listener: Listener, runtimes: Runtimes, tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def service(runner: Scripted, **settings: object) -> AsyncIterator[BuildService]:
        blobs, build = BlobStore(database), BuildSettings(**settings)  # type: ignore[arg-type]
        builder = Builder(database, blobs, runtimes, runner, build, tmp_path)
        running = BuildService(
            database, listener, blobs, builder, build=build, queue=QueueSettings(lease=2.0), grace_s=0.1
        )
        await running.start()
        try:
            yield running
        finally:
            await running.close()

    return service


@pytest.fixture
def deployer(database: Database) -> Deployer:
    return Deployer(database)


@pytest.fixture
def store(database: Database) -> BuildStore:
    return BuildStore(database)


async def test_a_build_makes_its_version_live(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve, tmp_path: Path
) -> None:
    """BU10: the deploy has returned long before; the build publishes artifact, status and live version together."""
    build_id = await deployer.deploy("hello", FILES)
    before = await deployer.function("hello")
    assert before.live_version is None
    async with serve(Scripted()):
        build = await finished(listener, store, build_id)
    assert (build.status, build.cached, build.error) == ("succeeded", False, None)
    assert build.toolchain is not None
    assert build.toolchain.startswith("python 3.")
    after = await deployer.function("hello")
    assert after.live_version == 1
    assert after.generation > before.generation
    assert after.etag != before.etag
    blobs = BlobStore(database)
    version = await VersionStore(database, blobs).version(after.id, 1)
    assert version is not None
    assert (version.compile_status, version.artifact, version.build_id) == ("success", build.artifact, build_id)
    assert build.artifact is not None
    artifacts = Artifacts(blobs, tmp_path / "artifacts", max_bytes=1 << 30)
    await artifacts.start()
    code = await artifacts.materialise(build.artifact)
    assert (code / "deps" / "thing.py").read_text() == "value = 1\n"
    assert os.readlink(code / "handler") == "main.py"
    log = await store.read_log(SCOPE, build_id)
    assert "installing" in log.text
    assert list((tmp_path / "builds").iterdir()) == []


async def test_a_failed_build_leaves_the_live_version(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve
) -> None:
    """BU4: the failure has its output; what is live keeps serving."""
    runner = Scripted()
    async with serve(runner):
        await finished(listener, store, await deployer.deploy("hello", FILES))
        runner.result = CommandResult(1)
        build_id = await deployer.deploy("hello", {**FILES, "main.py": "# changed\n"})
        build = await finished(listener, store, build_id)
    assert build.status == "failed"
    assert build.error is not None
    assert build.error.startswith("'pip install' failed with exit code 1\n")
    assert "installing" in build.error
    function = await deployer.function("hello")
    assert (function.live_version, function.latest_version) == (1, 2)
    version = await VersionStore(database, BlobStore(database)).version(function.id, 2)
    assert version is not None
    assert (version.compile_status, version.compile_error) == ("failed", build.error)


async def test_an_older_build_does_not_replace_a_newer_live_version(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve
) -> None:
    """BU3: the build of version 1 ends after that of version 2."""
    first = await deployer.deploy("hello", FILES)
    await database.run("UPDATE work SET run_at = now() + interval '1 hour'")
    second = await deployer.deploy("hello", {**FILES, "main.py": "# 2\n"})
    async with serve(Scripted()):
        await finished(listener, store, second)
        assert (await deployer.function("hello")).live_version == 2
        await database.run("UPDATE work SET run_at = now()")
        assert (await finished(listener, store, first)).status == "succeeded"
    assert (await deployer.function("hello")).live_version == 2


async def test_an_activation_after_the_deploy_wins(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve
) -> None:
    """BU3: whoever activated an older version meanwhile does not find it replaced."""
    async with serve(Scripted()):
        await finished(listener, store, await deployer.deploy("hello", FILES))
    second = await deployer.deploy("hello", {**FILES, "main.py": "# 2\n"})
    await database.run("UPDATE functions SET head_version = 1")
    async with serve(Scripted()):
        assert (await finished(listener, store, second)).status == "succeeded"
    assert (await deployer.function("hello")).live_version == 1


async def test_equal_names_of_two_tenants_build_at_once(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve
) -> None:
    """BU3, BU8: two tenants' builds of equal code run side by side and share nothing."""
    await database.run("INSERT INTO tenants (id, name) VALUES ('other', 'Other')")
    await database.run("INSERT INTO namespaces (tenant_id, name) VALUES ('other', 'default')")
    other, runner = Scope("other"), Scripted()
    runner.release.clear()
    async with serve(runner):
        one = await deployer.deploy("hello", FILES)
        two = await deployer.deploy("hello", FILES, scope=other)
        async with asyncio.timeout(20):
            while len(runner.commands) < 2:
                await asyncio.sleep(0.01)
        caches = {bind.source for command in runner.commands for bind in command.binds if bind.target == "/cache"}
        assert len(caches) == 2
        runner.release.set()
        assert (await finished(listener, store, one)).cached is False
        assert (await finished(listener, store, two, other)).cached is False
    with pytest.raises(NovaError, match="not_found"):
        await store.get(SCOPE, two)


async def test_equal_sources_build_once(
    deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve
) -> None:
    """BU8: equal code, deployed twice at the same time and once later, is installed once."""
    runner = Scripted()
    runner.release.clear()
    async with serve(runner):
        ids = [await deployer.deploy(name, FILES) for name in ("a", "b")]
        async with asyncio.timeout(20):
            while not runner.commands:
                await asyncio.sleep(0.01)
        runner.release.set()
        built = [await finished(listener, store, build_id) for build_id in ids]
        built.append(await finished(listener, store, await deployer.deploy("c", FILES)))
    assert sorted(build.cached for build in built) == [False, True, True]
    assert len({build.artifact for build in built}) == 1
    assert sum("install" in command.argv for command in runner.commands) == 1


async def test_a_rebuild_does_not_ask_the_cache(
    deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve
) -> None:
    runner = Scripted()
    async with serve(runner):
        await finished(listener, store, await deployer.deploy("a", FILES))
        again = await store.rebuild(SCOPE, "a", None, activate=True)
        build = await finished(listener, store, again)
    assert (build.version, build.status, build.cached) == (1, "succeeded", False)
    assert sum("install" in command.argv for command in runner.commands) == 2


async def test_a_failed_rebuild_keeps_what_the_version_had(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve
) -> None:
    runner = Scripted()
    async with serve(runner):
        first = await finished(listener, store, await deployer.deploy("a", FILES))
        runner.result = CommandResult(1)
        again = await finished(listener, store, await store.rebuild(SCOPE, "a", 1, activate=True))
    assert again.status == "failed"
    function = await deployer.function("a")
    version = await VersionStore(database, BlobStore(database)).version(function.id, 1)
    assert version is not None
    assert (version.compile_status, version.artifact) == ("success", first.artifact)


async def test_a_second_rebuild_is_refused_while_one_runs(deployer: Deployer, store: BuildStore) -> None:
    build_id = await deployer.deploy("a", FILES)
    with pytest.raises(NovaError, match="under way") as refused:
        await store.rebuild(SCOPE, "a", None, activate=True)
    assert refused.value.extra == {"build_id": build_id}


async def test_cancelling_stops_a_running_build(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve, tmp_path: Path
) -> None:
    runner = Scripted()
    runner.release.clear()
    async with serve(runner):
        build_id = await deployer.deploy("a", FILES)
        async with asyncio.timeout(20):
            while not runner.commands:
                await asyncio.sleep(0.01)
        await store.cancel(SCOPE, build_id)
        build = await store.get(SCOPE, build_id)
        assert (build.status, build.error) == ("cancelled", "the build was cancelled")
        async with asyncio.timeout(10):
            while list((tmp_path / "builds").iterdir()):
                await asyncio.sleep(0.01)
        runner.release.set()
        with pytest.raises(NovaError, match="cancelled"):
            await store.cancel(SCOPE, build_id)
    assert (await deployer.function("a")).live_version is None
    assert await database.fetch("SELECT 1 AS x FROM work") == []


async def test_a_build_of_a_deleted_function_vanishes(
    database: Database, deployer: Deployer, listener: Listener, serve: Serve
) -> None:
    await deployer.deploy("a", FILES)
    await database.run("DELETE FROM functions")
    async with serve(Scripted()), asyncio.timeout(10):
        while await database.fetch("SELECT 1 AS x FROM work"):
            await asyncio.sleep(0.01)


async def test_an_endless_log_is_cut(database: Database, deployer: Deployer, store: BuildStore) -> None:
    build_id = await deployer.deploy("a", FILES)
    await database.run("UPDATE builds SET status = 'running'")
    for _ in range(3):
        await store.append_log(build_id, "x\x00é" * 200_000)
    log = (await store.read_log(SCOPE, build_id)).text
    assert len(log) < (1 << 20) + 100
    assert log.endswith("[the rest of the output is not kept]\n")
    assert (await store.read_log(SCOPE, build_id, 5)).text == log[5:]


async def test_the_cache_forgets_beyond_its_size(database: Database, store: BuildStore) -> None:
    """BU8: the cache has a size limit; the least recently used goes first."""
    blobs = BlobStore(database)
    for number in range(4):
        artifact = await blobs.put(bytes([number]) * 1000)
        async with database.transaction() as conn:
            await store.remember(conn, SCOPE, f"key-{number}", artifact, limit=2500)
    kept = [await store.cached(SCOPE, f"key-{number}") is not None for number in range(4)]
    assert kept == [False, False, True, True]
    assert await store.cached(Scope("other"), "key-3") is None


_VICTIM = """
import asyncio, sys
from pathlib import Path
from nova.config import BuildSettings, QueueSettings
from nova.execution.builds import Builder
from nova.execution.builds_service import BuildService
from nova.runtimes.registry import Runtimes
from nova.store.blobs import BlobStore
from nova.store.db import Database
from nova.store.listen import Listener

class Stuck:
    async def run(self, command):
        print("running", flush=True)
        await asyncio.Event().wait()

async def main():
    async with Database(sys.argv[1], min_conns=1) as db:
        listener, blobs, build = Listener(sys.argv[1]), BlobStore(db), BuildSettings()
        await listener.start()
        builder = Builder(db, blobs, Runtimes(), Stuck(), build, Path(sys.argv[2]))
        await BuildService(db, listener, blobs, builder, build=build, queue=QueueSettings(lease=2.0), grace_s=1).start()
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_builder_is_replaced(
    deployer: Deployer, store: BuildStore, listener: Listener, serve: Serve, pg_dsn: str, tmp_path: Path
) -> None:
    """BU2: the build of a killed process is taken up and ends; meanwhile it does not read as running."""
    build_id = await deployer.deploy("a", FILES)
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _VICTIM, pg_dsn, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert victim.stdout is not None
    assert await victim.stdout.readline() == b"running\n"
    assert (await store.get(SCOPE, build_id)).status == "running"
    os.kill(victim.pid, signal.SIGKILL)
    await victim.wait()
    async with asyncio.timeout(20):
        while (await store.get(SCOPE, build_id)).status == "running":
            await asyncio.sleep(0.05)
    async with serve(Scripted()):
        build = await finished(listener, store, build_id)
    assert build.status == "succeeded"
    assert "attempt 2: the builder before was lost" in (await store.read_log(SCOPE, build_id)).text
    assert list((tmp_path / "builds").iterdir()) == []


async def test_an_artifact_is_on_the_node_before_its_version_is_live(
    database: Database, deployer: Deployer, store: BuildStore, listener: Listener, runtimes: Runtimes, tmp_path: Path
) -> None:
    """The first call of a new version does not wait for unpacking."""
    seen: list[tuple[str, int | None]] = []

    async def prepare(artifact: str) -> None:
        seen.append((artifact, (await deployer.function("hello")).live_version))

    blobs, build = BlobStore(database), BuildSettings()
    builder = Builder(database, blobs, runtimes, Scripted(), build, tmp_path, prepare=prepare)
    service = BuildService(database, listener, blobs, builder, build=build, queue=QueueSettings(), grace_s=0.1)
    await service.start()
    try:
        done = await finished(listener, store, await deployer.deploy("hello", FILES))
    finally:
        await service.close()
    assert seen == [(done.artifact, None)]
