"""After a change: pools of versions that no call without a number can reach any more are drained."""

import asyncio

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.catalog import Catalog
from nova.execution.fleet import InstanceFleet
from nova.service import Background

log = structlog.get_logger(__name__)
_AGAIN_S = 1.0


class Rollover:
    """Listens to the catalog and tells the fleet which pools to keep. Calls in flight finish; waiters move over."""

    def __init__(self, catalog: Catalog, fleet: InstanceFleet, clock: Clock = SYSTEM_CLOCK) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._clock = clock
        self._changed: set[tuple[Scope, str]] = set()
        self._wake = asyncio.Event()
        self._tasks = Background("rollover")
        catalog.on_change(self._on_change)

    async def start(self) -> None:
        self._tasks.spawn("drain", self._run())

    async def close(self) -> None:
        await self._tasks.close()

    def _on_change(self, scope: Scope, function: str) -> None:
        if self._fleet.has_pools(scope, function):
            self._changed.add((scope, function))
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changed:
                scope, function = self._changed.pop()
                try:
                    await self._drain_stale(scope, function)
                except NovaError as exc:
                    log.warning("old instances cannot be drained yet", function=function, cause=exc.code)
                    self._changed.add((scope, function))
                    await self._clock.sleep(_AGAIN_S)

    async def _drain_stale(self, scope: Scope, function: str) -> None:
        entry = await self._catalog.entry(scope, function)
        keep = {snapshot.pool_key for snapshot in entry.snapshots.values()} if entry is not None else set()
        drained = self._fleet.evict(scope, function, keep)
        if drained:
            log.info("old instances drain", function=function, pools=drained)
