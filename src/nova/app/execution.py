"""The execution plane: backends, pools, builds, call records."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nova.agent.config import WorkerLaunch
from nova.app.backends import WASM, Ground, candidates, proofs
from nova.app.bus import starter, webhook_client
from nova.app.core import Stores
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.domain.identity import Scope
from nova.domain.ownership import Ownership
from nova.domain.ports import Scaler
from nova.events.bus.publish import TopicPublisher
from nova.events.bus.trying import TryHandlers
from nova.execution.ahead import FetchAhead
from nova.execution.artifacts import Artifacts
from nova.execution.backends.router import BackendRouter
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from nova.execution.boots import Booter
from nova.execution.builds import Builder
from nova.execution.builds_service import BuildService
from nova.execution.durable import DurableCalls
from nova.execution.durable_handlers import DurableBeginHandlers
from nova.execution.executor import Executor
from nova.execution.exposition import Exposition
from nova.execution.figures import FigureHandlers
from nova.execution.fleet import InstanceFleet
from nova.execution.guest import GuestApi
from nova.execution.guest_publish import GuestTopics
from nova.execution.idempotent import IdempotentInvoker
from nova.execution.images import Images
from nova.execution.images.desk import ImageHandlers
from nova.execution.launch import launch_for
from nova.execution.ledger import Ledger
from nova.execution.logs import LogBatcher
from nova.execution.metrics import Metrics
from nova.execution.node import NodeReporter
from nova.execution.parts import PartMaker, WorkerFleet
from nova.execution.prewarm import PrewarmHandlers
from nova.execution.readiness import ReadinessHandlers
from nova.execution.recorder import CallRecorder
from nova.execution.records import RecordHandlers
from nova.execution.replays import ReplayHandlers
from nova.execution.rollover import Rollover, SteadyCatalog
from nova.execution.scaling import LocalScaler
from nova.execution.sealing import Sealer
from nova.execution.sealing_answers import SnapshotHandlers
from nova.execution.sealing_changes import SealedFunctions
from nova.execution.shadow import Shadows
from nova.execution.snapshots import SnapshotMaker
from nova.execution.tail import LogFeed
from nova.execution.tracing import TracedInvoker
from nova.execution.volume_files import VolumeFiles
from nova.execution.volumes import Volumes
from nova.observability.spans import SpanWriter
from nova.runtimes.registry import Runtimes
from nova.service import ServiceGroup
from nova.store.durable import DurableStore
from nova.store.durable_commits import StepCommits
from nova.store.durable_runs import DurableRunStore
from nova.store.durable_waits import DurableWaits
from nova.store.idempotency import IdempotencyStore
from nova.store.shadows import ShadowStore
from nova.store.spans import SpanStore
from nova.store.state import StateStore
from nova.store.topics import TopicStore
from nova.store.volumes import VolumeHost
from nova.tracing import open_tracing
from nova.work.membership import node_name
from nova.work.notices import Notices

DAYS_AHEAD = 2
"""Partitions of call records that are there before the first record; later ones are aurora's duty."""
_BUILD_GRACE_S = 0.5
"""A build that does not end within this at shutdown is handed back: nobody waits on a connection for it."""
_UIDS_EACH = 20_000
"""Host users of one process on a node; the next process's begin after them."""


class ExecutionPlane:
    """``home`` is a directory that belongs to this process alone; ``place`` its number among those of its data directory.
    ``ownership`` and ``ledger`` are there in a worker of several, whose limits hold over all of them."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        metrics: Metrics,
        home: Path,
        place: int = 0,
        *,
        ownership: Ownership | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._settings = settings
        self._stores = stores
        self._home = home
        self.ownership = ownership
        self.runtimes = Runtimes()
        self.sandbox = SandboxBackend(
            sandbox_options(settings, self.runtimes, home, place), _Toolchains(self.runtimes, settings.wasm.fuel)
        )
        self.images = Images(settings.images_dir, self.runtimes)
        self.image_desk = ImageHandlers(self.images, node_name(settings.cluster.node_id))
        ground = Ground(settings, self.runtimes, self.images, self.sandbox, home, node_of(home), place)
        self.router = BackendRouter(
            [self.sandbox],
            later=candidates(ground),
            proofs=proofs(ground),
            default=settings.execution.backend,
            default_isolation=settings.network_policy.default_isolation,
            strict_limits=settings.execution.strict_limits,
        )
        self.metrics = metrics
        self.spans = SpanWriter(SpanStore(stores.db))
        self.logs = LogBatcher(stores.invocations, settings.executor, home / "spill")
        self.artifacts = Artifacts(
            stores.blobs,
            home / "artifacts",
            max_bytes=settings.build.cache_mb << 20,
            in_use=lambda: self.fleet.artifacts(),
        )
        self.catalog = SteadyCatalog(
            stores.functions,
            stores.versions,
            SnapshotMaker(self.runtimes, self.router)
            if ownership is None
            else PartMaker(self.runtimes, self.router, ownership),
            stores.listener,
            build_wait=lambda: settings.functions.build_wait,
        )
        self.guests = GuestApi(StateStore(stores.db, lambda: settings.limits.state_mb << 20), settings.limits)
        self.sealer = Sealer(SYSTEM_CLOCK, metrics)
        node = node_name(settings.cluster.node_id)
        self.volumes = Volumes(
            VolumeHost(stores.db, node, f"{node}/{node_of(home)}"),
            node,
            VolumeFiles(settings.volumes_dir),
            SYSTEM_CLOCK,
        )
        self.booter = Booter(self.artifacts, self.router, SYSTEM_CLOCK, self.guests, self.sealer, self.volumes)
        self.fleet = (
            InstanceFleet(self.booter, settings.pool, events=self.metrics)
            if ledger is None
            else WorkerFleet(self.booter, settings.pool, events=self.metrics, ledger=ledger)
        )
        self.volumes.wanted = lambda instance: self.fleet.give_up(instance, "volume", at_once=False)
        self.volumes.lost = lambda instance: self.fleet.give_up(instance, "volume lost", at_once=True)
        self.tracing = open_tracing(settings.tracing, node=node_name(settings.cluster.node_id), sinks=(self.spans.add,))
        self.shadows = Shadows(ShadowStore(stores.db), SYSTEM_CLOCK)
        record = self.shadows.recorder(CallRecorder(self.metrics, self.logs).record)
        traced = None if self.tracing is None else TracedInvoker(self.tracing.tracer("comet"), metrics.backend_of)
        self.executor = Executor(
            self.catalog,
            self.fleet,
            record if traced is None else traced.recorder(record),
            refused=self.shadows.refusals(self.metrics.refused),
            drain_s=settings.daemon.drain_s,
            stream_limit=lambda: settings.limits.stream_mb << 20,
        )
        self.shadows.run_on(self.executor)
        self._notices = Notices(stores.db)
        kept = DurableStore(stores.db)
        waits = DurableWaits(kept, stores.listener)
        steps = StepCommits(stores.db.dsn)
        self.durable = DurableCalls(kept, DurableRunStore(stores.db), steps, waits, self._notices)
        self.executor.durable = self.durable.call
        self.guests.durable = self.durable
        self.publisher = TopicPublisher(stores.db, Notices(stores.db), max_hops=lambda: settings.events.max_hops)
        self.guests.topics = GuestTopics(self.publisher, TopicStore(stores.db))
        self.scaler = LocalScaler(self.catalog, self.fleet, SYSTEM_CLOCK)
        self.invoker = IdempotentInvoker(
            self.executor if traced is None else traced.around(self.executor), IdempotencyStore(stores.db)
        )
        self.guests.invoker = self.invoker
        self.exposition = Exposition(
            self.metrics, self.logs.counts, self.executor.stats, namespace=settings.metrics.namespace
        )
        self.feed = LogFeed(stores.invocations, stores.listener)

    async def start(self, services: ServiceGroup) -> None:
        stores = self._stores
        await services.start(self.spans)
        if self.tracing is not None:
            await services.start(self.tracing)
        await services.start(self.logs)
        await stores.invocations.prepare_days(SYSTEM_CLOCK.now().date(), DAYS_AHEAD)
        await services.start(self.image_desk)
        await services.start(self.router)
        await services.start(self.artifacts)
        await services.start(self.volumes)
        await services.start(SealedFunctions(self.sealer, self.catalog))
        await services.start(FetchAhead(self.catalog, self.artifacts, self._runs_here))
        await services.start(self._notices)
        await services.start(self.publisher)
        await services.start(self.durable)
        await services.start(self.executor)
        await services.start(self.shadows)
        await services.start(self.invoker)
        await services.start(Rollover(self.catalog, self.fleet))
        if self.ownership is None or self.ownership.own == 0:
            await self._start_builds(services)

    def _runs_here(self, scope: Scope, function: str) -> bool:
        return self.ownership is None or self.ownership.here((scope.tenant, scope.namespace, function))

    async def _start_builds(self, services: ServiceGroup) -> None:
        settings, stores = self._settings, self._stores
        builder = Builder(
            stores.db,
            stores.blobs,
            self.runtimes,
            self.sandbox,
            settings.build,
            self._home,
            prepare=self.artifacts.materialise,
            finished=self.metrics.build_finished,
            fuel=settings.wasm.fuel,
        )
        await services.start(
            BuildService(
                stores.db,
                stores.listener,
                stores.blobs,
                builder,
                build=settings.build,
                queue=settings.queue,
                grace_s=_BUILD_GRACE_S,
            )
        )

    def working_backends(self) -> list[str]:
        """The names of the backends that make instances here."""
        return [name for name, found in self.router.capabilities.items() if found.available]

    def reporter(self) -> NodeReporter:
        """What this process says of itself."""
        return NodeReporter(
            self.executor.stats,
            lambda: self.exposition.totals(None),
            self.working_backends,
            name=node_name(self._settings.cluster.node_id),
        )

    @property
    def able(self) -> bool:
        """Can functions run here at all?"""
        return bool(self.working_backends())

    def handlers(
        self, settle: Callable[[], Awaitable[None]] | None = None, scaler: Scaler | None = None
    ) -> list[object]:
        """``settle`` makes the records of every process readable that may have some; ``scaler`` has instances made on all of
        them. Unset: of this one, on this one."""
        stores = self._stores
        settle = settle or self.logs.settle
        return [
            RecordHandlers(stores.invocations, self.feed, settle),
            ReplayHandlers(stores.invocations, self.catalog, self.guests, settle, SYSTEM_CLOCK),
            ReadinessHandlers(self.catalog, self.router, self.fleet.pool, lambda: self.executor.draining),
            FigureHandlers(stores.invocations, self.exposition, self.executor.stats, settle, SYSTEM_CLOCK),
            PrewarmHandlers(scaler or self.scaler),
            TryHandlers(stores.db, self.guests, partial(webhook_client, self._settings), starter(stores), SYSTEM_CLOCK),
            DurableBeginHandlers(self.durable, self.catalog, self._settings.limits),
            self.image_desk,
            SnapshotHandlers(
                self.sealer, self.catalog, self.booter, SYSTEM_CLOCK, node_name(self._settings.cluster.node_id)
            ),
        ]


class _Toolchains:
    """What the sandbox asks about runtimes."""

    def __init__(self, runtimes: Runtimes, fuel: int) -> None:
        self._runtimes = runtimes
        self._fuel = fuel

    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        resolved = self._runtimes.resolve(runtime)
        return launch_for(resolved, fuel=self._fuel), resolved.host_paths


def node_of(home: Path) -> str:
    """What this process calls itself in the names of what it makes on the host: no other has it."""
    return hashlib.sha256(str(home).encode()).hexdigest()[:8]


def sandbox_options(settings: Settings, runtimes: Runtimes, home: Path, place: int) -> SandboxOptions:
    available: dict[str, Any] = {r.id: runtimes.resolve(r.id) for r in runtimes.list() if r.toolchain is not None}
    run_dir = home / "sandbox"
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    return SandboxOptions(
        run_dir=run_dir,
        node=node_of(home),
        templates={
            (name, available[name].version): count
            for name, count in settings.pool.runtime_pool.runtimes.items()
            if name in available
        },
        modules=tuple(sorted({launch_for(r).module for r in available.values()} - {""})),
        first_uid=settings.sandbox.uid_base + place * _UIDS_EACH,
        subnet=settings.sandbox.subnet,
        cgroup_root=settings.sandbox.cgroup_root,
        strict_limits=settings.execution.strict_limits,
        private_networks=settings.network_policy.private_egress,
        blocked=tuple(settings.network_policy.blocked),
        runtimes=frozenset(r.id for r in runtimes.list() if r.id != WASM),
    )
