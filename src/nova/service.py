"""Lifecycles. A plane is a list of services; the composition root starts them in order and closes them in reverse."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Protocol, Self, TypeVar

import structlog

log = structlog.get_logger(__name__)


class Service(Protocol):
    async def start(self) -> None: ...

    async def close(self) -> None: ...


S = TypeVar("S", bound=Service)
T = TypeVar("T")


class ServiceGroup:
    """Starts services in the order given; closes what was started in reverse, each even if another fails."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        return await self._stack.__aexit__(*exc)

    def callback(self, close: Callable[[], object]) -> None:
        """Call ``close`` when the group closes, in its turn."""
        self._stack.callback(close)

    async def start(self, service: S) -> S:
        """Start one more service. One that fails to start is closed with the others."""
        self._stack.push_async_callback(service.close)
        await service.start()
        return service


async def to_its_end(work: Callable[[], T]) -> T:
    """Do blocking work in a thread. A cancellation waits for it, so that what it made can be taken back."""
    done = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait({done})
        raise


def give_way() -> None:
    """Raise CancelledError if the running task was told to end: an error that came at the same moment must not hide it.

    For whoever goes on after errors. A group of tasks, for one, raises the errors of its tasks alone.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def put_an_end_to(*tasks: asyncio.Task[Any], again_s: float = 2.0) -> None:
    """Cancel tasks until they have ended. A library may lose a cancellation that meets a timeout of its own, so once is not
    always enough; ``again_s`` is the time that a task has to clear up before it is told again."""
    while left := {task for task in tasks if not task.done()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=again_s)


class Background:
    """Tasks that belong to one owner: named, logged when they die, all cancelled and awaited on close."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=f"{self._owner}.{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background task failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
