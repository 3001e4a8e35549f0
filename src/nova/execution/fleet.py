"""The owner of all pools of this process: it boots and stops instances, keeps the node's bounds, and looks after the idle.

One object, one event loop. Boots and stops are tasks of the fleet's own, so that no caller's cancellation disturbs them.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Collection, Coroutine, Iterator, Sequence
from typing import Any, Protocol

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import PoolSettings
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.domain.ports import InstanceInfo
from nova.errors import draining
from nova.execution.admission import NodeMemory
from nova.execution.backends.base import Backend
from nova.execution.boots import Booted, Booter, as_failure
from nova.execution.fairness import giver
from nova.execution.idle import Idle
from nova.execution.pacing import UNPACED
from nova.execution.pool import Pool
from nova.execution.slots import BootFailure, Lease, LoadFailed, Member, Waiter
from nova.execution.turns import Turns
from nova.service import Background

log = structlog.get_logger(__name__)

TICK_S = 0.02
"""How often the deadlines of waiting calls are looked at; nothing ticks while nobody waits."""


class FleetEvents(Protocol):
    """Who wants to know what becomes of instances (metrics). Called on the event loop; must not block or raise."""

    def instance_created(self, snapshot: FunctionSnapshot, booted: Booted) -> None: ...

    def instance_stopped(self, snapshot: FunctionSnapshot, reason: str, *, crashed: bool) -> None: ...


class NoEvents:
    def instance_created(self, snapshot: FunctionSnapshot, booted: Booted) -> None:
        pass

    def instance_stopped(self, snapshot: FunctionSnapshot, reason: str, *, crashed: bool) -> None:
        pass


class InstanceFleet:
    """Pools by key, and everything they share. :meth:`pool` and :meth:`Pool.take` are the warm path; the rest is rare."""

    def __init__(
        self,
        booter: Booter,
        settings: PoolSettings,
        *,
        events: FleetEvents | None = None,
        memory: NodeMemory | None = None,
        clock: Clock = SYSTEM_CLOCK,
        parallel_boots: int | None = None,
    ) -> None:
        self._booter = booter
        self._settings = settings
        self._events = events or NoEvents()
        self._memory = memory or NodeMemory(budget_mb=lambda: settings.memory_budget_mb)
        self._capacity = self._memory.capacity()
        self._clock = clock
        self._turns = Turns(parallel_boots or max(4, 2 * (os.cpu_count() or 1)))
        self._pools: dict[str, Pool] = {}
        self._drained: set[Pool] = set()
        self._backends: dict[str, Backend] = {}
        self._idle = Idle(self._pools, self._backends, settings, clock)
        self._tasks = Background("fleet")
        self._boots: set[asyncio.Task[None]] = set()
        self._stops: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[Any] | None = None
        self._full = False
        self._capped: set[str] = set()
        """tenants at their bound: nothing is tried for them before one of their instances went or a tick passed"""
        self._tenants: Counter[str] = Counter()
        self._closing = False
        self.size = 0
        """instances of all pools, from the beginning of a boot to the end of a stop"""
        self.created = 0
        self.stopped = 0

    async def start(self) -> None:
        self._idle.watch(self._tasks)

    async def close(self) -> None:
        """Refuse whoever waits, stop every instance and wait until all are gone. Idempotent."""
        self._closing = True
        await self._tasks.close()
        for boot in self._boots:
            boot.cancel()
        for pool in list(self._all()):
            pool.refuse_all(draining)
            self._drain(pool)
            for member in list(pool.members.values()):
                pool.discard(member, "shutdown")
        while pending := self._boots | self._stops:
            await asyncio.wait(pending)

    # Slots

    def pool(self, snapshot: FunctionSnapshot) -> Pool:
        """The pool of this snapshot; made when there is none."""
        pool = self._pools.get(snapshot.pool_key)
        if pool is None:
            pool = self._pools[snapshot.pool_key] = Pool(self, snapshot, self._clock.monotonic())
        elif pool.snapshot is not snapshot and snapshot.generation >= pool.snapshot.generation:
            pool.adopt(snapshot)
        return pool

    async def wait(self, pool: Pool, deadline: float | None) -> Lease:
        """Wait in the pool's queue; see :meth:`queue`."""
        waiter = self.queue(pool, deadline)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            pool.leave(waiter, self._clock.monotonic())
            raise

    def queue(self, pool: Pool, deadline: float | None) -> Waiter:
        """Queue for a slot until ``deadline`` (monotonic; the caller's) or the function's or the pool's longest wait.

        Raises, here or through the waiter's future, NovaError (``inflight_limit``, ``queue_full``, ``queue_timeout``,
        ``capacity``, ``timeout``, ``draining``, or what a boot failed with), LoadFailed, or PoolMoved when the function changed
        meanwhile.
        """
        if self._closing:
            raise draining()
        now = self._clock.monotonic()
        own = pool.snapshot.capacity
        wait = self._settings.max_queue_wait if own.max_queue_wait_ms is None else own.max_queue_wait_ms / 1000
        limit, refusal = now + wait, "queue_timeout"
        if deadline is not None and deadline < limit:
            limit, refusal = deadline, "timeout"
        depth = self._settings.max_queue_depth
        if own.max_queue_depth is not None:
            depth = min(depth, own.max_queue_depth)
        return pool.join(now, limit, refusal, depth)

    # What pools ask for (pool.Owner)

    def want_boots(self, pool: Pool) -> None:
        self._turns.add(pool)
        if not self._full and pool.snapshot.scope.tenant not in self._capped:
            self._boot_next()

    def stop(self, member: Member, reason: str) -> None:
        crashed = reason in CRASHES
        self._events.instance_stopped(member.pool.snapshot, reason, crashed=crashed)
        _keep(self._stops, self._stop(member, reason))

    def watch_queue(self) -> None:
        if self._ticker is None or self._ticker.done():
            self._ticker = self._tasks.spawn("queue", self._tick())

    async def _tick(self) -> None:
        while any(pool.waiters for pool in self._all()):
            await self._clock.sleep(TICK_S)
            now = self._clock.monotonic()
            self._turns.release_slow(now)
            for pool in list(self._all()):
                if pool.waiters:
                    pool.expire(now)
                    pool.plan()
                pool.owed = 0  # nobody may need it any more; who does asks again at once
            self._boot_next()
        for pool in self._all():
            pool.owed = 0

    # Boots and stops

    def _boot_next(self) -> None:
        """Begin boots while there are pools short of instances, places to boot in and room on the node.

        Once the node is full, nothing is tried again before an instance went or a tick passed.
        """
        if self._closing:
            return
        now = self._clock.monotonic()
        self._full = False
        self._capped.clear()
        blocked: list[Pool] = []
        while (pool := self._turns.pop()) is not None:
            if pool.shortfall(now) <= 0:
                continue
            if not self._room(pool, now, wanted=len(blocked) + 1):
                if pool.waiters:  # a floor alone can wait until it is asked for again
                    blocked.append(pool)
                continue
            self._count(pool, 1)
            pool.boot_began()
            _keep(self._boots, self._boot(pool, self._turns.enter(now)))
            self._turns.add(pool)
        for pool in blocked:
            self._turns.add(pool)

    def _room(self, pool: Pool, now: float, wanted: int) -> bool:
        """May one more instance begin? At the node's or the tenant's bound room is made for a pool in which calls wait."""
        tenant = pool.snapshot.scope.tenant
        most = self._settings.max_tenant_instances
        capped = bool(most) and self._tenants[tenant] >= most
        fits = not capped and self.size < (self._settings.max_global_instances or self._capacity)
        if fits and not self._memory.low(now):
            return True
        if pool.waiters:
            self._short(pool, now, wanted, own_tenant=capped)
        return False

    def _short(self, pool: Pool, now: float, wanted: int, *, own_tenant: bool) -> None:
        """Calls of a pool wait, and a bound is reached: the tenant's own, or the node's."""
        tenant = pool.snapshot.scope.tenant
        if own_tenant:
            self._capped.add(tenant)
        else:
            self._full = True
        rivals = [rival for rival in self._all() if not own_tenant or rival.snapshot.scope.tenant == tenant]
        if sum(rival.stopping + rival.owed for rival in rivals) < wanted:
            self._make_room(pool, rivals, now, own_tenant=own_tenant)

    def _make_room(self, needy: Pool, rivals: Sequence[Pool], now: float, *, own_tenant: bool) -> None:
        """Idle instances that nobody waits for go, the one idle longest first: those above their pool's floor, but a call
        comes before any floor. When none is idle, a pool with more than its share gives one up after a call."""
        kept = {pool for pool in rivals if (pool.floor or pool.warm) and pool.serving <= pool.kept(now)}
        members = (member for pool in rivals for member in pool.available if not member.inflight)
        idle = min(members, key=lambda member: (member.pool in kept, member.last_used), default=None)
        if idle is not None:
            idle.pool.discard(idle, "reclaimed")
        elif (rich := giver(rivals, needy, own_tenant=own_tenant)) is not None:
            rich.owed += 1

    def _count(self, pool: Pool, change: int) -> None:
        """One instance more or less, from the beginning of its boot to the end of its stop."""
        self.size += change
        tenant = pool.snapshot.scope.tenant
        self._tenants[tenant] += change
        if not self._tenants[tenant]:
            del self._tenants[tenant]

    async def _boot(self, pool: Pool, place: int) -> None:
        try:
            booted = await self._booter.boot(pool.snapshot)
        except asyncio.CancelledError:
            self._count(pool, -1)
            pool.boot_cancelled()
            raise
        except Exception as exc:
            self._count(pool, -1)
            failure = BootFailure(as_failure(exc))
            self._log_failure(pool, failure)
            pool.boot_failed(failure, self._clock.monotonic())
        else:
            self.created += 1
            self._adopt(pool, booted)
            self._memory.look(self._clock.monotonic())
        finally:
            self._turns.leave(place)
        self._forget_if_gone(pool)
        self._boot_next()

    def _adopt(self, pool: Pool, booted: Booted) -> None:
        now = self._clock.monotonic()
        instance = booted.instance
        member = Member(pool, instance, booted.concurrency, now)
        self._backends[instance.instance_id] = booted.backend
        self._events.instance_created(pool.snapshot, booted)
        pool.boot_ended(member, booted.times, now)
        instance.channel.on_lost(lambda: pool.lost(member))
        if not instance.channel.usable:
            pool.lost(member)

    def _log_failure(self, pool: Pool, failure: BootFailure) -> None:
        snapshot, cause = pool.snapshot, failure.cause
        told = cause.error.type if isinstance(cause, LoadFailed) else cause.code
        log.warning(
            "an instance did not start",
            function=snapshot.name,
            version=snapshot.version,
            cause=told,
            in_a_row=pool.failures + 1,
        )

    async def _stop(self, member: Member, reason: str) -> None:
        instance = member.instance
        backend = self._backends.pop(instance.instance_id)
        try:
            await self._booter.stop(backend, instance, reason=reason)
        except Exception:
            log.exception("an instance could not be stopped", instance=instance.instance_id)
        self._count(member.pool, -1)
        self.stopped += 1
        member.pool.stopped()
        self._forget_if_gone(member.pool)
        self._boot_next()

    # Change

    def evict(self, scope: Scope, function: str, keep: Collection[str]) -> int:
        """Drain the pools of a function whose keys are not in ``keep``; returns how many. Empty ``keep``: all."""
        stale = self.stale(scope, function, keep)
        for pool in stale:
            self._drain(pool)
        return len(stale)

    def stale(self, scope: Scope, function: str, keep: Collection[str]) -> list[Pool]:
        """The pools that :meth:`evict` would drain."""
        return [pool for pool in self._of(scope, function) if pool.key not in keep and not pool.draining]

    def keep(self, snapshot: FunctionSnapshot, floor: int, until: float) -> int:
        """Have at least ``floor`` instances of this version ready until then, and none of others for their own sake.

        Returns how many there are, those that are booting included.
        """
        if self._closing:
            raise draining()
        for other in list(self._of(snapshot.scope, snapshot.name)):
            if other.key != snapshot.pool_key:
                other.keep(0, until)
        if not floor and snapshot.pool_key not in self._pools:
            return 0
        pool = self.pool(snapshot)
        pool.keep(floor, until)
        return pool.serving

    def prewarm(self, snapshot: FunctionSnapshot, instances: int, until: float) -> Pool | None:
        """Have at least so many instances of this version ready until then, whatever floor there is beside; its pool.

        None when 0 were asked for and there is no pool.
        """
        if self._closing:
            raise draining()
        if not instances and snapshot.pool_key not in self._pools:
            return None
        pool = self.pool(snapshot)
        pool.prewarm(instances, until)
        return pool

    def has_pools(self, scope: Scope, function: str) -> bool:
        return any(True for _ in self._of(scope, function))

    def _drain(self, pool: Pool) -> None:
        if self._pools.get(pool.key) is pool:
            del self._pools[pool.key]
        self._drained.add(pool)
        pool.drain()
        self._forget_if_gone(pool)

    def _forget_if_gone(self, pool: Pool) -> None:
        if pool.draining and pool.gone:
            self._drained.discard(pool)

    def give_up(self, instance_id: str, reason: str, *, at_once: bool) -> None:
        """Stop an instance that others need gone: when the calls that it has are ended, or in their midst."""
        for pool in self._all():
            if (member := pool.members.get(instance_id)) is not None:
                (pool.discard if at_once else pool.retire)(member, reason)
                return

    # What is there

    def _all(self) -> Iterator[Pool]:
        yield from self._pools.values()
        yield from self._drained

    def _of(self, scope: Scope, function: str) -> Iterator[Pool]:
        for pool in self._all():
            snapshot = pool.snapshot
            if snapshot.name == function and snapshot.scope == scope:
                yield pool

    def paced(self) -> list[Pool]:
        """Those whose calls are over in a moment (:mod:`nova.execution.pacing`)."""
        return [pool for pool in self._pools.values() if pool.pace.width != UNPACED]

    def artifacts(self) -> set[str]:
        """The digests of the trees that instances have mounted, or are about to."""
        snapshots = [pool.snapshot for pool in self._all() if pool.size]
        layers = {layer.artifact for snapshot in snapshots for layer in snapshot.layers}
        return layers | {snapshot.artifact for snapshot in snapshots}

    def instances(self, scope: Scope, function: str) -> list[InstanceInfo]:
        now = self._clock.monotonic()
        return [
            InstanceInfo(
                instance_id=member.instance.instance_id,
                function=pool.snapshot.name,
                version=pool.snapshot.version,
                backend=self._backends[member.instance.instance_id].name,
                state=member.label,
                inflight=member.inflight,
                calls=member.calls,
                age_s=round(now - member.started, 3),
            )
            for pool in self._of(scope, function)
            for member in pool.members.values()
        ]

    def stats(self) -> dict[str, Any]:
        """Totals and one row per pool. ``instances`` = booting + ready + busy + draining + stopping, in each row too."""
        rows = [pool_stats(pool) for pool in self._all()]
        kinds = ("instances", "booting", "ready", "busy", "draining", "stopping", "inflight", "waiting")
        totals = {kind: sum(row[kind] for row in rows) for kind in kinds}
        return {
            **totals,
            "created": self.created,
            "stopped": self.stopped,
            "max_instances": self._settings.max_global_instances or self._capacity,
            "pools": rows,
        }


CRASHES = frozenset({"lost", "no answer", "crashed"})
"""Reasons for a stop that nobody intended."""


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def pool_stats(pool: Pool) -> dict[str, Any]:
    labels = [member.label for member in pool.members.values()]
    snapshot = pool.snapshot
    return {
        "tenant": snapshot.scope.tenant,
        "namespace": snapshot.scope.namespace,
        "function": snapshot.name,
        "version": snapshot.version,
        "instances": pool.size,
        "booting": pool.booting,
        "ready": labels.count("ready"),
        "busy": labels.count("busy"),
        "draining": labels.count("draining"),
        "stopping": pool.stopping,
        "inflight": pool.inflight,
        "free": sum(member.concurrency - member.inflight for member in pool.available),
        "waiting": len(pool.waiters),
        "calls": pool.calls,
        "boots": pool.boots,
        "failures": pool.failures,
        "evicted": pool.draining,
    }
