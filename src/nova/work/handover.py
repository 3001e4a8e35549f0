"""Work that runs in the process that put it into the queue: leased in the statement that puts it there, so that nobody has to
claim it.

It is rows of the queue like any other: if this process dies, their leases run out and another one takes them.
"""

from collections.abc import Sequence

from nova.store.work import Taker
from nova.work.lane import Lane
from nova.work.queue import WorkItem

_PATIENCE_S = 0.02
"""Callers wait so long for their work to get places here, once; after that it goes through the queue until that is empty."""


class Handover:
    """To a runner's lane; ``owner`` and ``lease_s`` are the runner's."""

    def __init__(self, lane: Lane, owner: str, lease_s: float) -> None:
        self._lane = lane
        self.owner = owner
        self._lease_s = lease_s

    async def reserve(self, most: int) -> Taker:
        """Who takes up to ``most`` items. :meth:`take` has to follow, whatever becomes of them."""
        places = await self._lane.reserve(most, _PATIENCE_S)
        return Taker(self.owner, self._lease_s, places)

    def take(self, taker: Taker, items: Sequence[WorkItem], leased_at: float) -> None:
        """Run what was taken, ``leased_at`` (monotonic) at the earliest."""
        self._lane.take(taker.most, items, leased_at)
