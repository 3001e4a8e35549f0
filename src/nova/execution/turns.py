"""Who boots next. At most so many boots run at once; pools that want one take turns, and so do their tenants."""

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nova.execution.pool import Pool

GATE_S = 0.25
"""A boot that takes longer is waiting for something else than this machine: it stops holding up the others."""


class Turns:
    """Pools waiting to boot, tenant by tenant and pool by pool in rotation, and the boots that hold a place."""

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._waiting: OrderedDict[str, deque[Pool]] = OrderedDict()
        self._queued: set[Pool] = set()
        self._running: dict[int, float] = {}
        self._next = 0

    def add(self, pool: "Pool") -> None:
        """Queue a pool at the end of its tenant's row; once is enough."""
        if pool not in self._queued:
            self._queued.add(pool)
            self._waiting.setdefault(pool.snapshot.scope.tenant, deque()).append(pool)

    def pop(self) -> "Pool | None":
        """The pool whose turn it is; its tenant goes to the end. None when nobody waits or no place is free."""
        if not self._waiting or len(self._running) >= self._parallel:
            return None
        tenant, pools = self._waiting.popitem(last=False)
        pool = pools.popleft()
        self._queued.discard(pool)
        if pools:
            self._waiting[tenant] = pools
        return pool

    def enter(self, now: float) -> int:
        """Take a place; returns what :meth:`leave` needs."""
        self._next += 1
        self._running[self._next] = now
        return self._next

    def leave(self, place: int) -> None:
        """Give the place back. Idempotent: a slow boot may have lost it already."""
        self._running.pop(place, None)

    def release_slow(self, now: float) -> bool:
        """Take the place of boots that last longer than :data:`GATE_S`; True when a place became free."""
        slow = [place for place, began in self._running.items() if now - began >= GATE_S]
        for place in slow:
            del self._running[place]
        return bool(slow)
