"""What is to be written next on a stream of batches: filled until the writer comes for it, so that it batches under load only."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

MAX_ITEMS = 64
MAX_BYTES = 256 << 10
LEAST = 6
"""A batch smaller than this waits a moment while more calls than this are under way: each write costs as much as five calls."""
HOLD_S = 0.0003

B = TypeVar("B")


class Outbox(Generic[B]):
    """Batches in order. One writer takes them; whoever has something to say adds to the last one. ``busy`` tells how many
    calls are under way: with few of them nobody waits for company."""

    def __init__(self, make: Callable[[], B], busy: Callable[[], int] = lambda: 0) -> None:
        self._make = make
        self._busy = busy
        self._full: deque[tuple[B, int, int]] = deque()
        self._open: B | None = None
        self._items = 0
        self._bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self.backlog = 0
        """bytes that wait to be written, about"""

    def batch(self, size: int) -> B:
        """The batch to put one more item of about ``size`` bytes into, now, before anything else runs."""
        current = self._open
        if current is None or self._items >= MAX_ITEMS or (self._bytes + size > MAX_BYTES and self._items):
            if current is not None:
                self._full.append((current, self._items, self._bytes))
            current = self._open = self._make()
            self._items = self._bytes = 0
        self._items += 1
        self._bytes += size
        self.backlog += size
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        return current

    async def take(self) -> B:
        """The next batch; waits until there is one."""
        while True:
            if self._full:
                batch, _, size = self._full.popleft()
                self.backlog -= size
                return batch
            if self._open is not None and self._items < LEAST < self._busy():
                await asyncio.sleep(HOLD_S)
                if self._full:
                    continue
            if (current := self._open) is not None:
                self._open = None
                self.backlog -= self._bytes
                self._items = self._bytes = 0
                return current
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    @property
    def empty(self) -> bool:
        return self._open is None and not self._full
