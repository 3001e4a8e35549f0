"""Builds as a service of the execution plane: the builder, the loop that feeds it, and the hourly clearing up of blobs."""

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import BuildSettings, QueueSettings
from nova.errors import NovaError
from nova.execution.builds import Builder
from nova.service import Background
from nova.store.blobs import BlobStore
from nova.store.builds import KIND
from nova.store.db import Database
from nova.work.runner import Kind, Notifications, Runner

log = structlog.get_logger(__name__)
_CLEAR_S = 3600
_BLOBS_KEPT_S = 86_400
"""After the last reference."""


class BuildService:
    """Runs ``build.workers`` builds at once on this node, ``build.per_tenant`` of one tenant over all nodes."""

    def __init__(
        self,
        db: Database,
        notifications: Notifications,
        blobs: BlobStore,
        builder: Builder,
        *,
        build: BuildSettings,
        queue: QueueSettings,
        grace_s: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._blobs = blobs
        self._builder = builder
        self._clock = clock
        kind = Kind(builder, build.workers, per_tenant=build.per_tenant, backoff_s=5)
        self._runner = Runner(
            db, notifications, {KIND: kind}, lease_s=queue.lease, batch=queue.batch, grace_s=grace_s, clock=clock
        )
        self._background = Background("builds")

    async def start(self) -> None:
        await self._builder.start()
        await self._runner.start()
        self._background.spawn("clear-up", self._clear_up())

    async def close(self) -> None:
        """Builds that do not end within the grace go back to the queue."""
        await self._background.close()
        await self._runner.close()

    async def _clear_up(self) -> None:
        while True:
            await self._clock.sleep(_CLEAR_S)
            try:
                while await self._blobs.sweep(older_than_s=_BLOBS_KEPT_S):
                    pass
            except NovaError as error:
                log.warning("cannot clear up blobs", error=error.detail)
