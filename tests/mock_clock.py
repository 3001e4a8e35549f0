"""A clock that stands still until a test moves it."""

import asyncio
import heapq
from datetime import UTC, datetime, timedelta
from itertools import count

_START = datetime(2026, 11, 22, 5, 8, tzinfo=UTC)


async def settle(turns: int = 20) -> None:
    """Let everything run that is ready to run."""
    for _ in range(turns):
        await asyncio.sleep(0)


class MockClock:
    """Implements :class:`nova.clock.Clock`. Sleepers wake in order as :meth:`advance` passes their time."""

    def __init__(self, monotonic: float = 1000.0) -> None:
        self._began = self._monotonic = monotonic
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def now(self) -> datetime:
        return _START + timedelta(seconds=self._monotonic - self._began)

    def unix(self) -> float:
        return self.now().timestamp()

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; returns when everything that this set off has come to rest."""
        await settle()
        end = self._monotonic + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, future = heapq.heappop(self._sleepers)
            self._monotonic = max(self._monotonic, at)
            if not future.done():
                future.set_result(None)
                await settle()
        self._monotonic = end
        await settle()
