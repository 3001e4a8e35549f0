"""A source of events without the rest: a sink that keeps what comes, and somebody who starts the source again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from types import ModuleType
from typing import Any

import httpx

from nova import payload
from nova.clock import SYSTEM_CLOCK
from nova.config import TriggerSettings
from nova.domain.identity import Scope
from nova.events.triggers.base import Context, Source, SourceError, SourceEvent, Verdict
from nova.ids import new_id
from nova.security.egress import Guard

LIMIT_S = 30


LOOPBACK = ("127.0.0.0/8",)


def made(
    module: ModuleType,
    *,
    window: int = 20,
    trigger_id: str | None = None,
    allow: Sequence[str] = LOOPBACK,
    **config: Any,
) -> Source:
    """A source as the frame makes it: of JSON that was checked."""
    context = Context(
        trigger_id=trigger_id or new_id(),
        name="t",
        scope=Scope(),
        window=window,
        clock=SYSTEM_CLOCK,
        settings=TriggerSettings(),
        http=lambda timeout: httpx.AsyncClient(timeout=timeout),
        guard=Guard(allow),
        node="here",
    )
    source: Source = module.make(module.Config.model_validate(config), context)
    return source


class Kept:
    """A sink. ``handle`` is called with each event, and may wait, or fail as the target's plane does."""

    def __init__(self, handle: Callable[[SourceEvent], Awaitable[None]] | None = None) -> None:
        self.handle = handle
        self.events: list[SourceEvent] = []
        self.saved: bytes | None = None
        self.at_once = self.most_at_once = 0
        self.terms = 0
        self.errors: list[str] = []
        self.up = asyncio.Event()

    async def deliver(self, event: SourceEvent) -> Verdict:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.handle is not None:
                await self.handle(event)
            self.events.append(event)
        finally:
            self.at_once -= 1
        return Verdict.SUCCEEDED

    async def position(self) -> bytes | None:
        return self.saved

    async def save(self, position: bytes) -> None:
        self.saved = position

    def connected(self) -> None:
        self.terms += 1
        self.up.set()

    @property
    def data(self) -> list[Any]:
        return [payload.decode(event.data) for event in self.events]

    def bodies(self) -> set[int]:
        """Of events whose body is a number, or a field ``n`` with one."""
        return {int(data["fields"]["n"] if "fields" in data else data["body"]) for data in self.data}

    async def until(self, fits: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not fits():
                await asyncio.sleep(0.01)

    async def have(self, count: int) -> None:
        await self.until(lambda: len(self.events) >= count)


@asynccontextmanager
async def running(make: Callable[[], Source], sink: Kept) -> AsyncIterator[None]:
    """The source runs, and again after each error; inside the block it has been connected once."""

    async def keep() -> None:
        while True:
            try:
                await make().run(sink)
            except (SourceError, OSError) as error:
                sink.up.clear()
                sink.errors.append(str(error))
                await asyncio.sleep(0.05)

    task = asyncio.create_task(keep())
    try:
        async with asyncio.timeout(LIMIT_S):
            while not sink.up.is_set() and not task.done():
                await asyncio.sleep(0.01)
        if task.done():
            task.result()
        yield
    finally:
        task.cancel()
        async with asyncio.timeout(LIMIT_S):
            with suppress(asyncio.CancelledError):
                await task
