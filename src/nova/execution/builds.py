"""Builds: leased work that installs a version's dependencies in isolation and publishes the result.

Everything a build decides is written in one transaction with the end of its lease: a builder that was away too long, was
cancelled or lost its function can publish nothing.
"""

import asyncio
import os
import platform
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from nova.config import BuildSettings
from nova.domain import build as domain
from nova.domain.build import FINISHED, INSTALLERS, MANIFESTS, BuildPlan, Installer
from nova.errors import NovaError
from nova.execution.artifacts import remove
from nova.execution.backends.base import CommandRunner
from nova.execution.builds_box import BoxLimits, BuildBox, BuildFailed, download_cache, scratch
from nova.execution.builds_installers import Installers
from nova.execution.builds_log import BuildLog
from nova.execution.builds_tree import TreeRefused, lay_out, pack_folder
from nova.runtimes.registry import Resolved, Runtimes
from nova.store.blobs import TAR, BlobStore
from nova.store.builds import BuildStore, BuildSubject
from nova.store.db import Database
from nova.work import queue
from nova.work.queue import WorkItem

log = structlog.get_logger(__name__)
_OUTPUT_LIMIT = 250 << 20
"""Bytes of code and dependencies together."""
_TWIN_DELAY_S = 0.5


Finished = Callable[[str, str, float], None]
"""Told of every build that ended: its runtime, ``succeeded`` or ``failed``, and how long it took in seconds."""


class Builder:
    """Handles work of kind ``build``. ``prepare`` gets a new artifact ready on this node before anybody can call it."""

    def __init__(
        self,
        db: Database,
        blobs: BlobStore,
        runtimes: Runtimes,
        runner: CommandRunner,
        settings: BuildSettings,
        data_dir: Path,
        *,
        prepare: Callable[[str], Awaitable[object]] | None = None,
        finished: Finished = lambda _runtime, _status, _seconds: None,
        fuel: int = 0,
    ) -> None:
        self._finished = finished
        self._db = db
        self._blobs = blobs
        self._builds = BuildStore(db)
        self._runtimes = runtimes
        self._runner = runner
        self._settings = settings
        self._scratch = data_dir / "builds"
        self._caches = data_dir / "cache"
        self._prepare = prepare
        self._installers = Installers(runtimes, network=settings.network, fuel=fuel)

    async def start(self) -> None:
        """Remove what a killed predecessor left on this node."""
        if self._scratch.exists():
            await asyncio.to_thread(remove, self._scratch)

    async def run(self, item: WorkItem) -> None:
        subject = await self._builds.subject(item.subject)
        if subject is None or subject.status in FINISHED:
            # its function, or the version, is gone
            async with self._db.transaction() as conn:
                await queue.finish(conn, item)
            return
        began = time.monotonic()
        try:
            built = await self._build(item, subject)
        except BuildFailed as failure:
            await self.give_up(item, str(failure))
            self._finished(subject.config.runtime, "failed", time.monotonic() - began)
        else:
            if built:
                self._finished(subject.config.runtime, "succeeded", time.monotonic() - began)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        async with self._db.transaction() as conn:
            await queue.finish(conn, item)
            await self._builds.fail(conn, item.subject, reason)
        log.info("build failed", build=item.subject, reason=reason.partition("\n")[0])

    async def _build(self, item: WorkItem, subject: BuildSubject) -> bool:
        """Build and publish; False when a twin is at it and this one comes back later."""
        try:
            runtime = self._runtimes.resolve(subject.config.runtime)
            installer = _installer(runtime)
            toolchain = await self._installers.toolchain(runtime, installer)
        except NovaError as error:
            raise BuildFailed(error.detail) from error
        key = domain.cache_key(
            runtime=runtime.runtime,
            code_hash=subject.code_hash,
            entry=subject.config.entry,
            toolchain=toolchain,
            arch=platform.machine(),
        )
        async with self._db.transaction() as conn:
            await queue.hold(conn, item)
            if not await self._builds.start(conn, item.scope, subject.id, cache_key=key, toolchain=toolchain):
                await queue.release(conn, item, delay_s=_TWIN_DELAY_S, counts=False)
                return False
        cached = None if item.payload["fresh"] else await self._builds.cached(item.scope, key)
        if cached is not None:
            await self._builds.append_log(subject.id, "» an equal build is known: its result is used\n")
        artifact = cached or await self._make(item, subject, runtime)
        if self._prepare is not None:
            await self._prepare(artifact)
        async with self._db.transaction() as conn:
            await queue.finish(conn, item)
            published = await self._builds.succeed(conn, subject.id, artifact, cached=cached is not None)
            if published and cached is None:
                limit = self._settings.cache_mb << 20
                await self._builds.remember(conn, item.scope, key, artifact, limit=limit)
        log.info("build succeeded", build=subject.id, version=subject.version, cached=cached is not None)
        return True

    async def _make(self, item: WorkItem, subject: BuildSubject, runtime: Resolved) -> str:
        """Build and store the artifact; its digest. Raises :class:`BuildFailed` with the end of the output."""
        async with BuildLog(self._builds, subject.id) as output:
            if item.attempt > 1:
                output.say(f"attempt {item.attempt}: the builder before was lost")
            try:
                async with self._box(item, _installer(runtime), output) as box:
                    await lay_out(box.code, self._builds.sources(subject))
                    for step in await self._installers.steps(
                        runtime, self._plan(box.code, runtime), subject.config.entry
                    ):
                        await box.run(step)
                    return await self._store(box, subject, output)
            except (BuildFailed, TreeRefused) as failure:
                output.say(str(failure))
                raise BuildFailed(f"{failure}\n{output.tail}") from failure
            except OSError as error:
                output.say(f"the builder's disk: {error.strerror}")
                raise

    @asynccontextmanager
    async def _box(self, item: WorkItem, installer: Installer, output: BuildLog) -> AsyncIterator[BuildBox]:
        limits = BoxLimits(self._settings.timeout, self._settings.memory_mb)
        caches = self._caches / item.scope.tenant / installer
        async with (
            scratch(self._scratch) as folder,
            download_cache(caches, limit=self._settings.cache_mb << 20) as cache,
        ):
            yield BuildBox(folder, cache, self._runner, output, limits, forwarder=self._installers.forwarder())

    def _plan(self, code: Path, runtime: Resolved) -> BuildPlan:
        manifests = {name: code / name for name in MANIFESTS[runtime.runtime]}
        content = {name: path.read_bytes() for name, path in manifests.items() if path.is_file()}
        plan = domain.plan(runtime.runtime, content)
        if plan is None:
            raise BuildFailed("there are no dependencies to install")
        target = code / plan.target
        if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
            raise BuildFailed(f"{plan.target!r} is no folder: the build writes into one of that name")
        target.mkdir(exist_ok=True)
        target.chmod(0o777)
        return plan

    async def _store(self, box: BuildBox, subject: BuildSubject, output: BuildLog) -> str:
        # without a name: a build may have left anything in its folder
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            packed = await asyncio.to_thread(pack_folder, box.code, subject.config.entry, file, limit=_OUTPUT_LIMIT)
            digest = await self._blobs.put_file(file, TAR)
        output.say(f"{packed.files} files, {packed.size / (1 << 20):.1f} MiB: {digest}")
        return digest


def _installer(runtime: Resolved) -> Installer:
    installer = INSTALLERS.get(runtime.runtime)
    if installer is None:
        raise BuildFailed(f"dependencies of runtime {runtime.runtime!r} cannot be installed")
    return installer
