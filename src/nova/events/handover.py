"""Jobs that run in the process that accepted them: leased in the statement that accepts them, so that nobody has to claim them.

They are rows of the queue like any others: if this process dies, their leases run out and another one takes them.
"""

from collections.abc import Sequence

from nova.events.jobs import item_of
from nova.store.asyncs import Taker
from nova.store.jobs import Job
from nova.work.lane import Lane

_PATIENCE_S = 0.02
"""Callers wait so long for their jobs to get places here, once; after that jobs go through the queue until it is empty."""


class Handover:
    """To a runner's lane; ``owner`` and ``lease_s`` are the runner's."""

    def __init__(self, lane: Lane, owner: str, lease_s: float) -> None:
        self._lane = lane
        self._owner = owner
        self._lease_s = lease_s

    async def reserve(self, most: int) -> Taker:
        """Who takes up to ``most`` jobs. :meth:`take` has to follow, whatever becomes of them."""
        places = await self._lane.reserve(most, _PATIENCE_S)
        return Taker(self._owner, self._lease_s, places)

    def take(self, taker: Taker, jobs: Sequence[Job], leased_at: float) -> None:
        """Run what was taken, ``leased_at`` (monotonic) at the earliest."""
        self._lane.take(taker.most, [item_of(job, self._owner) for job in jobs], leased_at)
