"""What is one worker's of what all workers of a ``nova up`` may have together: of the node's instances, and of a function's."""

from collections import Counter
from dataclasses import replace
from typing import Any

from nova.domain.function import FunctionSnapshot
from nova.domain.ownership import Ownership
from nova.execution.fleet import InstanceFleet
from nova.execution.ledger import Bound, Ledger
from nova.execution.pool import Pool
from nova.execution.snapshots import NetworkDefaults, RuntimeResolver, SnapshotMaker
from nova.store.functions import FunctionRecord
from nova.store.versions import VersionRecord

RECLAIM_S = 0.05


class WorkerFleet(InstanceFleet):
    """A fleet whose bounds hold over all workers. Idle instances make room for calls that wait in another worker too."""

    def __init__(self, *args: Any, ledger: Ledger, **options: Any) -> None:
        super().__init__(*args, **options)
        self._ledger = ledger
        self._wishes: Counter[tuple[str, Bound]] = Counter()

    async def start(self) -> None:
        await super().start()
        self._tasks.spawn("reclaim", self._reclaim_often())

    def _room(self, pool: Pool, now: float, wanted: int) -> bool:
        tenant = pool.snapshot.scope.tenant
        node_most = self._settings.max_global_instances or self._capacity
        bound = self._ledger.claim(tenant, node_most, self._settings.max_tenant_instances)
        if bound is None:
            if not self._memory.low(now):
                return True
            self._ledger.release(tenant)
            bound = "node"
        if pool.waiters:
            self._wish(tenant, bound, wanted)
            self._short(pool, now, wanted, own_tenant=bound == "tenant")
        return False

    def _count(self, pool: Pool, change: int) -> None:
        super()._count(pool, change)
        if change < 0:  # what is more has been claimed
            self._ledger.release(pool.snapshot.scope.tenant)

    def _wish(self, tenant: str, bound: Bound, instances: int) -> None:
        self._wishes[tenant, bound] = instances
        self._ledger.want(tenant, bound, instances)

    async def _reclaim_often(self) -> None:
        while True:
            await self._clock.sleep(RECLAIM_S)
            await self._reclaim()

    async def _reclaim(self) -> None:
        """Give up what is idle and others wait for; take back our own wishes when nobody waits here."""
        for tenant, bound in list(self._wishes):
            if not any(pool.waiters and tenant == pool.snapshot.scope.tenant for pool in self._all()):
                del self._wishes[tenant, bound]
                self._ledger.want(tenant, bound, 0)
        wanted: Counter[str | None] = Counter({None: self._ledger.wanted()})
        for tenant in list(self._tenants):
            wanted[tenant] = self._ledger.wanted(tenant)
        if not any(wanted.values()):
            return
        for member in sorted(self._idle, key=lambda member: member.last_used):
            tenant = member.pool.snapshot.scope.tenant
            who = tenant if wanted[tenant] else None
            if wanted[who] > 0:
                wanted[who] -= 1
                member.pool.discard(member, "reclaimed")


class PartMaker(SnapshotMaker):
    """Makes snapshots whose ``max_replicas`` is this worker's part of the function's."""

    def __init__(self, runtimes: RuntimeResolver, networks: NetworkDefaults, ownership: Ownership) -> None:
        super().__init__(runtimes, networks)
        self._ownership = ownership

    def make(self, function: FunctionRecord, version: VersionRecord) -> FunctionSnapshot:
        snapshot = super().make(function, version)
        whole = snapshot.max_replicas
        part = self._ownership.part((function.scope.tenant, function.scope.namespace, function.name), whole)
        # a function that has just been given fewer instances than there are workers is gathered again within a second
        return snapshot if part == whole else replace(snapshot, max_replicas=max(1, part))
