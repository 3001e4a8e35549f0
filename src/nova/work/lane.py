"""One kind of work in one process: what runs, what may be due, and what was handed over without a claim.

Whoever puts work into the queue in the process that would claim it a moment later may lease it to this process in the very
statement that puts it there (a *hand-over*). That is allowed only while nothing is known to wait in the queue: what waits has
the better right, and the claim decides about it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec import Struct

from nova.clock import Clock
from nova.work.kinds import Kind
from nova.work.queue import WorkItem

_DUE_SLACK_S = 0.002
"""Asked for a moment after it is due, an item is found; asked for a moment before, it is not."""
_PATIENCE_S = 0.5
"""So long handed work may wait here for its turn: it is leased meanwhile, and another process may have room for it."""


class Handed(Struct, frozen=True):
    item: WorkItem
    at: float
    """monotonic; leased then, or later"""


class Lane:
    """``begin`` runs an item that was leased at that time (monotonic); ``give_back`` returns to the queue what waited long."""

    def __init__(
        self,
        kind: Kind,
        clock: Clock,
        begin: Callable[["Lane", WorkItem, float], None],
        give_back: Callable[[Sequence[WorkItem]], None],
    ) -> None:
        self.kind = kind
        self.running = 0
        self.due = asyncio.Event()
        self.room = kind.room
        self.room.fill = self._fill
        self.next_claim = 0.0
        self._clock = clock
        self._begin = begin
        self._give_back = give_back
        self._backlog = True
        """something waits in the queue, as far as is known here"""
        self._hungry = False
        """a claim waits for room: what comes now queues behind what that claim will find"""
        self._closing = False
        self._claiming = 0
        self._reserved = 0
        self._waiting: deque[Handed] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._change = asyncio.Event()
        self.due.set()

    @property
    def free(self) -> int:
        """Places that nobody has, and nobody has been promised."""
        return self.kind.limit - self.running - self._claiming - self._reserved - len(self._waiting)

    def look(self) -> None:
        """Something may be due."""
        self.due.set()

    def look_after(self, seconds: float) -> None:
        """Something will be."""
        asyncio.get_running_loop().call_later(seconds + _DUE_SLACK_S, self.due.set)

    # Claims

    def want_room(self) -> None:
        """A claim has to wait for a place; until it has had its turn nothing is handed over."""
        self.room.clear()
        self._hungry = True

    def begin_claim(self, batch: int) -> None:
        self._claiming = batch
        self.due.clear()

    def end_claim(self, *, more: bool) -> None:
        """``more``: there may be more in the queue that is due."""
        self._claiming = 0
        self._hungry = False
        self._backlog = more
        if more:
            self.due.set()
        self._change.set()

    def ended(self) -> None:
        """An item of this lane has ended."""
        self.running -= 1
        self.room.set()
        if self.kind.per_tenant is not None:
            self.look()

    # Hand-overs

    async def reserve(self, most: int, patience_s: float) -> int:
        """Places for up to ``most`` items, to be filled by :meth:`take`. None while something in the queue has the better right.

        Waits a moment for all of them when only work that was handed over is in the way: it may all be quick. What gets no
        place goes through the queue, and so does what comes after it until a claim has seen the queue's end.
        """
        wanted = min(most, self.kind.limit + self.kind.ahead)
        if self.open and self._room_ahead < wanted:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    while self.open and self._room_ahead < wanted:
                        self._change.clear()
                        await self._change.wait()
        granted = max(0, min(most, self._room_ahead)) if self.open else 0
        self._backlog |= granted < most
        self._reserved += granted
        return granted

    @property
    def open(self) -> bool:
        """Nothing is known to wait in the queue, so work may be handed over."""
        return not (self._backlog or self._closing)

    @property
    def _room_ahead(self) -> int:
        return 0 if self._hungry else self.free + self.kind.ahead

    def take(self, reserved: int, items: Sequence[WorkItem], leased_at: float) -> None:
        """Run ``items``, leased to this process since ``leased_at`` (monotonic), in the places that were reserved."""
        self._reserved -= reserved
        self._waiting += [Handed(item, leased_at) for item in items]
        self._fill()

    def withdrawn(self, subject: str) -> None:
        """Forget work that was taken back before it began."""
        if any(handed.item.subject == subject for handed in self._waiting):
            self._waiting = deque(handed for handed in self._waiting if handed.item.subject != subject)

    async def close(self, timeout_s: float) -> list[WorkItem]:
        """Take nothing more. What was handed over and has not begun; hand-overs under way are waited for."""
        self._closing = True
        self._change.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._reserved:
                    self._change.clear()
                    await self._change.wait()
        return self._clear()

    def _fill(self) -> None:
        self._change.set()
        while self._waiting and not self._closing and self.running < self.kind.limit:
            handed = self._waiting.popleft()
            self._begin(self, handed.item, handed.at)
        if self._waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._left(), self._too_late)

    def _clear(self) -> list[WorkItem]:
        items = [handed.item for handed in self._waiting]
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return items

    def _left(self) -> float:
        return self._waiting[0].at + _PATIENCE_S - self._clock.monotonic()

    def _too_late(self) -> None:
        self._timer = None
        if self._waiting and self._left() <= 0:
            self._backlog = True
            self._give_back(self._clear())
        elif self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self._left(), self._too_late)
