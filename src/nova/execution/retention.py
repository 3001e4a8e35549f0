"""Keeps the table of call records in shape: a partition ready before its day begins, none kept beyond its time."""

from collections.abc import Callable
from datetime import timedelta

import structlog

from nova.clock import Clock
from nova.config import ExecutorSettings
from nova.errors import NovaError
from nova.service import Background
from nova.store.invocations import InvocationStore

log = structlog.get_logger(__name__)
DAYS_AHEAD = 2
INTERVAL_S = 3600.0


class LogRetention:
    """Runs in every process; what one has done the others find done. ``deleted(table, rows)`` is told what went."""

    def __init__(
        self,
        store: InvocationStore,
        settings: ExecutorSettings,
        clock: Clock,
        deleted: Callable[[str, int], None],
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._deleted = deleted
        self._background = Background("retention")

    async def start(self) -> None:
        """Partitions are there when this returns, so that no record has to be moved later."""
        await self._store.prepare_days(self._clock.now().date(), DAYS_AHEAD)
        self._background.spawn("logs", self._run())

    async def close(self) -> None:
        await self._background.close()

    async def _run(self) -> None:
        while True:
            try:
                await self.tend()
            except NovaError as exc:
                log.warning("retention of call records waits for the database", error=exc.detail)
            await self._clock.sleep(INTERVAL_S)

    async def tend(self) -> None:
        """One round. Records older than ``executor.log_retention_days`` go, a whole day at a time."""
        today = self._clock.now().date()
        made = await self._store.prepare_days(today, DAYS_AHEAD)
        keep_from = today - timedelta(days=self._settings.log_retention_days)
        dropped, rows = await self._store.purge(keep_from)
        if rows:
            self._deleted("invocation_logs", rows)
        if made or dropped or rows:
            log.info("call records tended", days_made=len(made), days_dropped=dropped, rows_deleted=rows)
