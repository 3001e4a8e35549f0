"""The duty that turns call records into time series, in whichever process is in charge of it."""

from typing import Protocol

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.errors import NovaError
from nova.store.db import Connection
from nova.store.series import SeriesStore

log = structlog.get_logger(__name__)
DUTY = "rollup"
INTERVAL_S = 2.0
"""How often new records are looked for; series lag behind the records by this and the batcher's interval, at most."""
BATCH = 5000
"""Records in one transaction: a fraction of a second, because the lease is held still meanwhile."""


class Fence(Protocol):
    """The part of :class:`nova.work.leader.Fence` that a writer needs."""

    async def check(self, conn: Connection) -> None: ...


class Rollup:
    """``lead`` is the work of a :class:`nova.work.leader.Duty`."""

    def __init__(self, store: SeriesStore, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._clock = clock

    async def lead(self, fence: Fence) -> None:
        """Until cancelled. Raises LeaseLost when somebody else is in charge; waits while the database does not answer."""
        while True:
            try:
                while await self._store.roll_up(fence.check, limit=BATCH):
                    pass
            except NovaError as error:
                log.warning("the time series wait for the database", error=error.detail)
            await self._clock.sleep(INTERVAL_S)
