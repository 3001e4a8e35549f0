"""Writing what became of deliveries: outcomes and cursors of one moment share a statement, each under its duty's fence."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from nova.errors import NovaError
from nova.service import Background
from nova.store.bus_deliveries import DeliveryStore, Ended, Moved
from nova.work.leader import Fence

log = structlog.get_logger(__name__)
_HOLD_S = 0.015
"""An outcome that nobody waits for is written with those of so long,"""
_ENOUGH = 128
"""or with so many."""
_BATCH = 512
_CURSOR_S = 0.25
"""How far a cursor may be behind: after a crash so much is looked at again, and found to be done."""
_WRITE_FOR_S = 5.0
"""While PostgreSQL is away; beyond it the duty is somebody else's."""
Done = Callable[[bool], None]


class Progress(Protocol):
    """A subscription that has come further."""

    fence: Fence

    def moved(self) -> Moved: ...


@dataclass(slots=True)
class _Entry:
    fence: Fence
    ended: Ended
    done: list[Done] = field(default_factory=list)


class Recorder:
    """One writer for all subscriptions of a process. ``done(False)``: the duty is not ours any more, or nothing could be
    written."""

    def __init__(self, store: DeliveryStore, owner: str) -> None:
        self._store = store
        self._owner = owner
        self._waiting: dict[tuple[str, int, int], _Entry] = {}
        self._moving: dict[Progress, None] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._busy = self._flushing = False
        self._next_move = 0.0
        self._tasks = Background("deliveries")

    async def start(self) -> None:
        self._tasks.spawn("write", self._run())

    async def close(self) -> None:
        await self.flush()
        await self._tasks.close()

    def put(self, fence: Fence, ended: Ended, done: Done, *, prompt: bool) -> None:
        """Write soon, or ``prompt``: as soon as the writer is free. What is said later of a delivery stands for both."""
        place = (ended.subscription_id, ended.sequence, ended.generation)
        entry = self._waiting.get(place)
        if entry is None:
            entry = self._waiting[place] = _Entry(fence, ended)
        entry.ended = ended
        entry.done.append(done)
        self._wake.set()
        if prompt or len(self._waiting) >= _ENOUGH:
            self._urgent.set()

    async def write(self, fence: Fence, ended: Ended) -> bool:
        """Returns when it is committed; False as for :meth:`put`."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.put(fence, ended, lambda ok: None if future.done() else future.set_result(ok), prompt=True)
        return await future

    def move(self, line: Progress) -> None:
        """Its cursor is to be written within a moment."""
        if line not in self._moving:
            self._moving[line] = None
            self._wake.set()

    async def flush(self) -> None:
        """Returns when everything that was put is written or given up."""
        while self._waiting or self._moving or self._busy:
            self._flushing = True
            self._urgent.set()
            self._wake.set()
            await asyncio.sleep(0.002)
        self._flushing = False

    async def _run(self) -> None:
        while True:
            await self._gather()
            self._busy = True
            if self._waiting:
                await self._write()
            if self._moving and (self._flushing or time.monotonic() >= self._next_move):
                self._next_move = time.monotonic() + _CURSOR_S
                await self._advance()
            self._busy = False

    async def _gather(self) -> None:
        """Wait for something, then for its company, unless somebody waits for it."""
        if not self._waiting:
            self._wake.clear()
            pause = max(0.0, self._next_move - time.monotonic()) if self._moving else None
            await _within(pause, self._wake)
        if self._waiting and not self._urgent.is_set():
            await _within(_HOLD_S, self._urgent)
        self._urgent.clear()

    async def _write(self) -> None:
        entries = [self._waiting.pop(place) for place in list(self._waiting)[:_BATCH]]
        if self._waiting:
            self._urgent.set()
        fences = {entry.fence.duty: entry.fence for entry in entries if entry.fence.held}
        ended = [(e.fence.duty, e.ended) for e in entries if fences.get(e.fence.duty) is e.fence]
        numbers = _numbers(fences)
        ours = await self._persist(fences, lambda: self._store.record(self._owner, numbers, ended))
        for entry in entries:
            written = entry.fence.duty in ours and fences.get(entry.fence.duty) is entry.fence
            for done in entry.done:
                done(written)

    async def _advance(self) -> None:
        lines = list(self._moving)
        self._moving.clear()
        fences = {line.fence.duty: line.fence for line in lines if line.fence.held}
        moved = [(line.fence.duty, line.moved()) for line in lines if fences.get(line.fence.duty) is line.fence]
        numbers = _numbers(fences)
        await self._persist(fences, lambda: self._store.advance(self._owner, numbers, moved))

    async def _persist(
        self, fences: dict[str, Fence], write: Callable[[], Awaitable[frozenset[str]]]
    ) -> frozenset[str]:
        """The duties that are still ours; those that are not learn it here."""
        if not fences:
            return frozenset()
        try:
            ours = await self._tried(write)
        except NovaError as error:
            log.warning("deliveries cannot be recorded", error=error.detail)
            return frozenset()
        except Exception:
            log.exception("deliveries cannot be recorded")
            return frozenset()
        for duty, fence in fences.items():
            if duty not in ours:
                fence.lose()
        return ours

    async def _tried(self, write: Callable[[], Awaitable[frozenset[str]]]) -> frozenset[str]:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_away),
            wait=wait_exponential(multiplier=0.05, max=1) + wait_random(0, 0.1),
            stop=stop_after_delay(_WRITE_FOR_S),
            reraise=True,
        ):
            with attempt:
                return await write()
        raise AssertionError("unreachable")


def _numbers(fences: dict[str, Fence]) -> dict[str, int]:
    return {duty: fence.number for duty, fence in fences.items()}


def _away(error: BaseException) -> bool:
    return isinstance(error, NovaError) and error.code in ("dependency_unavailable", "storage_full")


async def _within(seconds: float | None, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
