"""Deliveries side by side: so many at once as the trigger allows, each acknowledged when it has ended."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from nova.events.triggers.base import Sink, SourceEvent
from nova.service import give_way, put_an_end_to

Acknowledge = Callable[[], Awaitable[None]]
_AGAIN_S = 0.5
"""Between cancellations: a client's library may lose one, and a group of tasks gives only one."""


class Deliveries:
    """Use :func:`deliveries`. One task takes; it is cancelled as soon as a delivery or an acknowledgement fails."""

    def __init__(self, sink: Sink, window: int, tasks: asyncio.TaskGroup) -> None:
        self._sink = sink
        self._tasks = tasks
        self._begun: set[asyncio.Task[None]] = set()
        self._window = window
        self._running = 0
        self._ended = asyncio.Event()

    async def room(self) -> int:
        """Wait until another delivery may begin; how many may."""
        while self._running >= self._window:
            self._ended.clear()
            await self._ended.wait()
        return self._window - self._running

    def alongside(self, work: Coroutine[Any, Any, None]) -> None:
        """Something else that the source does meanwhile: its error is the source's, and it is cancelled at the end."""
        self._begin(work)

    async def take(self, event: SourceEvent, acknowledge: Acknowledge) -> None:
        """Begin with the delivery, in the order of the calls; waits for room. ``acknowledge`` is called after its end."""
        await self.room()
        self._running += 1
        self._begin(self._deliver(event, acknowledge))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.create_task(work)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def end(self) -> None:
        """Cancel what runs, until it has ended."""
        await put_an_end_to(*self._begun, again_s=_AGAIN_S)

    async def _deliver(self, event: SourceEvent, acknowledge: Acknowledge) -> None:
        try:
            await self._sink.deliver(event)
            await acknowledge()
        finally:
            self._running -= 1
            self._ended.set()


@asynccontextmanager
async def deliveries(sink: Sink, window: int) -> AsyncIterator[Deliveries]:
    """At its end by an error or a cancellation what runs is cancelled, and not acknowledged. Raises the first error alone."""
    try:
        async with asyncio.TaskGroup() as tasks:
            made = Deliveries(sink, window, tasks)
            try:
                yield made
            except BaseException:
                await made.end()
                raise
    except BaseExceptionGroup as errors:
        give_way()
        raise _first(errors) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def text_or_b64(raw: bytes) -> str | dict[str, str]:
    """A value that is meant to be text, as a member of ``data``."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(raw).decode()}
