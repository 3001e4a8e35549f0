"""The composition root: every object of the platform is built and wired here, and every listening socket opened.

``Nova`` is the whole platform in one process. Nothing below this module knows which planes share a process.
"""

import asyncio
import gc
import hashlib
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from nova.agent.config import WorkerLaunch
from nova.api.system import Standing
from nova.api.table import routes
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.config_sources import Loaded
from nova.control.aliases import AliasHandlers
from nova.control.apikeys import KeyHandlers
from nova.control.builds import BuildHandlers
from nova.control.code import CodeHandlers
from nova.control.deploy import Deployer
from nova.control.describe import DescriptionHandlers
from nova.control.functions import FunctionHandlers
from nova.control.runtimes import RuntimeHandlers
from nova.control.settings import LiveSettings, SettingsHandlers
from nova.control.tenants import TenantHandlers
from nova.control.uploads import Uploads
from nova.control.versions import VersionHandlers
from nova.errors import NovaError
from nova.execution.artifacts import Artifacts
from nova.execution.backends.router import BackendRouter
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from nova.execution.boots import Booter
from nova.execution.builds import Builder
from nova.execution.builds_service import BuildService
from nova.execution.catalog import Catalog
from nova.execution.executor import Executor
from nova.execution.exposition import Exposition
from nova.execution.figures import FigureHandlers
from nova.execution.fleet import InstanceFleet
from nova.execution.launch import launch_for
from nova.execution.logs import LogBatcher
from nova.execution.metrics import Metrics
from nova.execution.recorder import CallRecorder
from nova.execution.records import RecordHandlers
from nova.execution.retention import LogRetention
from nova.execution.rollover import Rollover
from nova.execution.snapshots import SnapshotMaker
from nova.execution.tail import LogFeed
from nova.gateway.front import Front
from nova.http.bind import bind
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.listen import Address, listening_socket
from nova.observability.health import HealthHandlers
from nova.observability.readings import ReadingHandlers
from nova.runtimes.registry import Runtimes
from nova.security.guards import Door
from nova.security.identity import KeyRing
from nova.security.limits import RateLimiter
from nova.security.scope import Directory
from nova.service import ServiceGroup
from nova.store.aliases import AliasStore
from nova.store.apikeys import KeyStore
from nova.store.audit import AuditStore
from nova.store.blobs import BlobStore
from nova.store.builds import BuildStore
from nova.store.db import Database
from nova.store.embedded import DirectoryLock, EmbeddedPostgres
from nova.store.functions import FunctionStore
from nova.store.invocations import InvocationStore
from nova.store.keeper import Keeper
from nova.store.listen import Listener
from nova.store.migrate import migrate, pending
from nova.store.settings import SettingsStore
from nova.store.tenants import TenantStore
from nova.store.versions import VersionStore
from nova.telemetry import set_level

log = structlog.get_logger(__name__)
Progress = Callable[[str], None]
_GC_THRESHOLDS = (20_000, 50, 100)
"""A call leaves no cycles behind, so looking for them every 700 allocations is time taken from calls."""
_BUILD_GRACE_S = 0.5
"""A build that does not end within this at shutdown is handed back: nobody waits on a connection for it."""


class Nova:
    """Every plane in this process. :meth:`start`, then :meth:`wait` for a signal, then :meth:`close`."""

    def __init__(self, loaded: Loaded, *, address: Address, on_progress: Progress = lambda _step: None) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._address = address
        self._say = on_progress
        self._services = ServiceGroup()
        self._url = f"http://{address.shown}"
        self.default_network: str = ""
        """The isolation that functions without a network policy get on this host."""

    @property
    def url(self) -> str:
        """Where the platform answers; the real port, also when 0 was asked for."""
        return self._url

    async def start(self) -> None:
        """Everything up, or nothing left behind. Raises DataDirectoryBusy, OSError, NovaError or RuntimeError."""
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        settings, services = self._settings, self._services
        await services.__aenter__()
        socket = listening_socket(self._address)
        services.callback(socket.close)
        host, port = socket.getsockname()[:2]
        self._url = f"http://{Address(host, port).shown}"
        dsn = await self._database()
        db = await services.start(
            Database(
                dsn,
                min_conns=settings.postgres.min_conns,
                max_conns=settings.postgres.max_conns,
                statement_timeout_s=settings.postgres.statement_timeout,
            )
        )
        listener = await services.start(Listener(dsn))
        db.on_commit = listener.deliver
        listener.on_reconnect(db.refresh)
        store = _Store(db, listener)
        live = await services.start(LiveSettings(self._loaded, store.settings, listener, self._settings_changed))
        self._say("preparing the sandbox")
        metrics = Metrics(settings.metrics)
        security = await self._security(store, metrics)
        execution = _Execution(settings, store, metrics)
        await execution.start(services)
        self.default_network = execution.router.default_network("auto").isolation_mode
        application = bind(
            routes(),
            [*_control(settings, store, execution), *self._system(store, security, execution, live, dsn)],
            door=security.door,
            audit=store.audit,
            limits=settings.limits,
            elsewhere=Front.OPS,
        )
        front = Front(
            execution.executor,
            security.door,
            store.audit,
            application,
            limits=settings.limits,
            overhead=metrics.overhead,
        )
        limits = ConnectionLimits(
            max_connections=settings.http.max_connections, header_timeout_s=settings.http.header_timeout
        )
        await services.start(HttpServer(front, [socket], limits=limits, drain_s=settings.daemon.drain_s))
        services.callback(lambda: _drain(security.door, execution.executor))
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        log.info("ready", url=self.url)

    def _settings_changed(self, keys: list[str]) -> None:
        if "logging.level" in keys:
            set_level(self._settings.log_level)

    async def wait(self) -> None:
        """Until SIGINT or SIGTERM."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    async def close(self) -> None:
        """Answer what is in flight, stop every instance, flush every record. Idempotent."""
        await self._services.__aexit__(None, None, None)

    async def _database(self) -> str:
        """DSN of a database with the current schema: the one named, or the embedded one."""
        data_dir = self._settings.data_dir
        lock = DirectoryLock(data_dir)
        lock.acquire()
        self._services.callback(lock.release)
        dsn = self._settings.postgres.dsn
        if not dsn:
            self._say("starting the database")
            server = EmbeddedPostgres(data_dir)
            await self._services.start(Keeper(server))
            dsn = server.dsn
        try:
            await migrate(dsn)
        except OSError as exc:
            raise NovaError("dependency_unavailable", f"the database does not answer: {exc}") from exc
        return dsn

    async def _security(self, store: "_Store", metrics: Metrics) -> "_Security":
        settings = self._settings
        keys = await self._services.start(KeyRing(store.keys, store.listener, settings.auth.api_keys, SYSTEM_CLOCK))
        directory = await self._services.start(Directory(store.tenants, store.listener))
        limiter = RateLimiter(settings.rate_limit, SYSTEM_CLOCK)
        door = Door(settings.auth, settings.http, keys, directory, limiter, SYSTEM_CLOCK, events=metrics)
        return _Security(door, keys, directory)

    def _system(
        self, store: "_Store", security: "_Security", execution: "_Execution", live: LiveSettings, dsn: str
    ) -> list[object]:
        async def migrated() -> bool:
            return not await pending(dsn)

        stats, rates = execution.executor.stats, self._settings.rate_limit
        return [
            HealthHandlers(
                ping=store.db.ping,
                migrated=migrated,
                draining=lambda: execution.executor.draining,
                planes=lambda: _standing(store, execution),
                fleet=stats,
                clock=SYSTEM_CLOCK,
            ),
            ReadingHandlers(execution.exposition),
            SettingsHandlers(store.db, store.settings, live),
            KeyHandlers(store.db, store.keys, security.keys, security.directory, rates, SYSTEM_CLOCK),
            TenantHandlers(store.db, store.tenants, security.directory, rates),
        ]


def _drain(door: Door, executor: Executor) -> None:
    """The first step of a shutdown: say so to probes and to whoever knocks, while calls in flight go on."""
    door.draining = True
    executor.drain()


@dataclass(frozen=True, slots=True)
class _Security:
    door: Door
    keys: KeyRing
    directory: Directory


def _standing(store: "_Store", execution: "_Execution") -> dict[str, Standing]:
    """How each plane of this process stands. Zenith is the one that answers."""
    backends = execution.router.capabilities.values()
    return {
        "zenith": "ok",
        "nova": "ok" if store.listener.connected else "degraded",
        "comet": "ok" if any(backend.available for backend in backends) else "down",
        "aurora": "degraded" if execution.logs.in_outage else "ok",
    }


class _Store:
    """Every noun's way to PostgreSQL."""

    def __init__(self, db: Database, listener: Listener) -> None:
        self.db = db
        self.listener = listener
        self.blobs = BlobStore(db)
        self.functions = FunctionStore(db)
        self.versions = VersionStore(db, self.blobs)
        self.aliases = AliasStore(db)
        self.keys = KeyStore(db)
        self.tenants = TenantStore(db)
        self.audit = AuditStore(db)
        self.settings = SettingsStore(db)
        self.invocations = InvocationStore(db)
        self.builds = BuildStore(db)


class _Execution:
    """The execution plane: backends, pools, builds, call records."""

    def __init__(self, settings: Settings, store: _Store, metrics: Metrics) -> None:
        self._settings = settings
        self._store = store
        self.runtimes = Runtimes()
        self.sandbox = SandboxBackend(_sandbox_options(settings, self.runtimes), _Toolchains(self.runtimes))
        self.router = BackendRouter(
            [self.sandbox],
            default=settings.execution.backend,
            default_isolation=settings.network_policy.default_isolation,
            strict_limits=settings.execution.strict_limits,
        )
        self.metrics = metrics
        self.logs = LogBatcher(store.invocations, settings.executor, settings.data_dir / "spill")
        self.artifacts = Artifacts(
            store.blobs,
            settings.data_dir / "artifacts",
            max_bytes=settings.build.cache_mb << 20,
            in_use=lambda: self.fleet.artifacts(),
        )
        self.catalog = Catalog(
            store.functions,
            store.versions,
            SnapshotMaker(self.runtimes, self.router),
            store.listener,
            build_wait=lambda: settings.functions.build_wait,
        )
        self.fleet = InstanceFleet(
            Booter(self.artifacts, self.router, SYSTEM_CLOCK), settings.pool, events=self.metrics
        )
        recorder = CallRecorder(self.metrics, self.logs)
        self.executor = Executor(
            self.catalog,
            self.fleet,
            recorder.record,
            refused=self.metrics.refused,
            drain_s=settings.daemon.drain_s,
        )
        self.exposition = Exposition(
            self.metrics, self.logs.counts, self.executor.stats, namespace=settings.metrics.namespace
        )
        self.feed = LogFeed(store.invocations, store.listener)

    async def start(self, services: ServiceGroup) -> None:
        settings, store = self._settings, self._store
        await services.start(self.logs)
        await services.start(
            LogRetention(store.invocations, settings.executor, SYSTEM_CLOCK, self.metrics.rows_deleted)
        )
        await services.start(self.router)
        await services.start(self.artifacts)
        await services.start(self.executor)
        await services.start(Rollover(self.catalog, self.fleet))
        builder = Builder(
            store.db,
            store.blobs,
            self.runtimes,
            self.sandbox,
            settings.build,
            settings.data_dir,
            prepare=self.artifacts.materialise,
            finished=self.metrics.build_finished,
        )
        await services.start(
            BuildService(
                store.db,
                store.listener,
                store.blobs,
                builder,
                build=settings.build,
                queue=settings.queue,
                grace_s=_BUILD_GRACE_S,
            )
        )

    def handlers(self) -> list[object]:
        store = self._store
        return [
            RecordHandlers(store.invocations, self.feed, self.logs.settle),
            FigureHandlers(store.invocations, self.exposition, self.executor.stats, self.logs.settle, SYSTEM_CLOCK),
        ]


def _control(settings: Settings, store: _Store, execution: _Execution) -> list[object]:
    """The handlers of the control plane, and those of the execution plane beside them."""
    functions, versions, blobs = store.functions, store.versions, store.blobs
    uploads = Uploads(settings.limits)
    deployer = Deployer(store.db, functions, versions, blobs, execution.runtimes, execution.router)
    return [
        FunctionHandlers(deployer, functions, versions, uploads, settings.limits, settings.functions),
        CodeHandlers(deployer, functions, versions, blobs, uploads, settings.limits, settings.functions),
        VersionHandlers(deployer, functions, versions),
        AliasHandlers(deployer, functions, versions, store.aliases),
        BuildHandlers(store.builds, functions, store.listener),
        RuntimeHandlers(execution.runtimes),
        DescriptionHandlers(routes()),
        *execution.handlers(),
    ]


class _Toolchains:
    """What the sandbox asks about runtimes."""

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes

    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        resolved = self._runtimes.resolve(runtime)
        return launch_for(resolved), resolved.host_paths


def _sandbox_options(settings: Settings, runtimes: Runtimes) -> SandboxOptions:
    available: dict[str, Any] = {r.id: runtimes.resolve(r.id) for r in runtimes.list() if r.toolchain is not None}
    run_dir = settings.data_dir / "sandbox"
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    return SandboxOptions(
        run_dir=run_dir,
        node=hashlib.sha256(str(settings.data_dir).encode()).hexdigest()[:8],
        templates={
            (name, available[name].version): count
            for name, count in settings.pool.runtime_pool.runtimes.items()
            if name in available
        },
        modules=tuple(sorted({launch_for(r).module for r in available.values()} - {""})),
        first_uid=settings.sandbox.uid_base,
        subnet=settings.sandbox.subnet,
        cgroup_root=settings.sandbox.cgroup_root,
        strict_limits=settings.execution.strict_limits,
    )
