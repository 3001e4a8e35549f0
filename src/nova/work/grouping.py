"""Group commit: many who want something written share one transaction and are answered after it has committed."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from nova.errors import NovaError, draining
from nova.service import Background

T = TypeVar("T")
R = TypeVar("R")

_CROWD = 12
"""Fewer callers are not waited for."""


class GroupCommit(Generic[T, R]):
    """``write`` takes a batch and returns one answer, or one exception, for each of its items in order.

    A writer that is free takes what is there at once; or, where nobody waits for items, when ``enough`` are there or
    ``hold_s`` have passed, so that few items alone do not cost a transaction. While all are busy, items gather. With
    ``crowd_s`` a crowd is written in halves: who was answered last mostly comes again, so the next batch waits, at most so
    long, until half of those are there who were at the end of the last; so one half is written while the
    other is answered. An exception of ``write`` itself is everybody's in
    the batch. A caller who is cancelled while he waits takes nothing back.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[Sequence[T]], Awaitable[Sequence[R | BaseException]]],
        *,
        batch: int = 256,
        writers: int = 2,
        max_waiting: int = 20_000,
        weigh: Callable[[T], int] = lambda _item: 0,
        max_weight: int = 8 << 20,
        hold_s: float = 0,
        enough: int = 1,
        crowd_s: float = 0,
    ) -> None:
        """``batch`` items at most in one transaction and, beyond the first, ``max_weight`` bytes as ``weigh`` tells them;
        ``writers`` transactions at a time."""
        self._write = write
        self._batch = batch
        self._writers = writers
        self._running = 0
        self._max_waiting = max_waiting
        self._weigh = weigh
        self._max_weight = max_weight
        self._hold_s = hold_s
        self._enough = enough
        self._crowd_s = crowd_s
        self._full = asyncio.Event()
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._tasks = Background(name)
        self._drained = asyncio.Event()
        self._scheduled = False
        self._closing = False
        self.unanswered = 0
        """items that wait or are being written"""

    async def put(self, item: T) -> R:
        """Write ``item`` and return its answer. Raises ``queue_full``, ``draining``, or what the write raised."""
        return await self.add(item)

    def add(self, item: T, answer: "asyncio.Future[R] | None" = None) -> "asyncio.Future[R]":
        """As :meth:`put` without a task: the answer is ``answer``'s, or a new future's. Raises ``queue_full``, ``draining``."""
        if self._closing:
            raise draining()
        if len(self._waiting) >= self._max_waiting:
            raise NovaError("queue_full", "too many requests wait to be written", retry_after_s=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future() if answer is None else answer
        self._waiting.append((item, future))
        self.unanswered += 1
        if len(self._waiting) >= self._enough:
            self._full.set()
        if self._running < self._writers and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._begin)  # whoever comes in this turn of the loop is in the same batch
        return future

    async def close(self) -> None:
        """Take nothing more and write what waits."""
        self._closing = True
        self._full.set()
        self._drained.clear()
        if self._waiting or self._running:
            await self._drained.wait()
        await self._tasks.close()

    def _begin(self) -> None:
        self._scheduled = False
        if self._waiting and self._running < self._writers:
            self._running += 1
            self._tasks.spawn("write", self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._enough > 1:
                    await self._gather()
                await self._write_batch(self._next_batch())
        finally:
            self._running -= 1
            if not self._waiting and not self._running:
                self._drained.set()

    async def _gather(self) -> None:
        """Give few items a moment's company."""
        self._full.clear()
        if len(self._waiting) < self._enough and not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._hold_s):
                    await self._full.wait()

    def _next_batch(self) -> list[tuple[T, asyncio.Future[R]]]:
        batch = [self._waiting.popleft()]
        weight = self._weigh(batch[0][0])
        while self._waiting and len(batch) < self._batch:
            weight += self._weigh(self._waiting[0][0])
            if weight > self._max_weight:
                break
            batch.append(self._waiting.popleft())
        return batch

    async def _write_batch(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            answers = await self._write([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            self.unanswered -= len(batch)
        if self._crowd_s:
            crowd = len(batch) + len(self._waiting)
            self._enough = min(crowd * 7 // 16, self._batch) if crowd >= _CROWD else 1
            self._hold_s = self._crowd_s
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
