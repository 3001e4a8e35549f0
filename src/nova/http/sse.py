"""Server-sent events: what a handler yields, and how it reaches the client."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json
from starlette.types import Receive, Send

COMMENT_INTERVAL_S = 15.0
"""A comment goes out after this long without an event, so that nobody on the way closes an idle stream."""
FIRST_EVENT_WAIT_S = 0.1
"""How long the head waits for the first event: what fails before it is an ordinary HTTP error."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``data`` is a model or JSON-compatible value, or bytes of JSON on one line."""

    data: Any
    event: str | None = None
    id: str | None = None

    def encode(self) -> bytes:
        parts = []
        if self.id is not None:
            parts.append(b"id: " + _line(self.id))
        if self.event is not None:
            parts.append(b"event: " + _line(self.event))
        parts.append(b"data: " + (self.data if isinstance(self.data, bytes) else to_json(self.data)))
        return b"\n".join(parts) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that are there at the same time and go out in one write."""

    events: Sequence[Event]

    def encode(self) -> bytes:
        return b"".join(event.encode() for event in self.events)


def _line(text: str) -> bytes:
    return text.replace("\r", " ").replace("\n", " ").encode()


async def stream(
    events: AsyncIterator[Event | Batch], receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]
) -> None:
    """Send ``events`` until they end or the client leaves; the iterator is closed in both cases.

    An exception before the first event reaches the caller with nothing sent; a later one cuts the stream.
    """
    source = aiter(events)
    gone: asyncio.Task[Any] = asyncio.create_task(_disconnected(receive))
    upcoming: asyncio.Task[Any] = asyncio.create_task(_next(source))
    try:
        await asyncio.wait({upcoming}, timeout=FIRST_EVENT_WAIT_S)
        if upcoming.done() and (error := upcoming.exception()) and not isinstance(error, _Ended):
            raise error
        head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b": stream\n\n", "more_body": True})
        while True:
            await asyncio.wait([upcoming, gone], timeout=COMMENT_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return
            if not upcoming.done():
                await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
                continue
            try:
                event: Event | Batch = upcoming.result()
            except _Ended:
                break
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
            upcoming = asyncio.create_task(_next(source))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        for task in (gone, upcoming):
            task.cancel()
        await asyncio.gather(gone, upcoming, return_exceptions=True)
        if (close := getattr(source, "aclose", None)) is not None:
            await close()


class _Ended(Exception):
    """The iterator is exhausted (StopAsyncIteration cannot travel in a future)."""


async def _next(source: AsyncIterator[Event | Batch]) -> Event | Batch:
    try:
        return await anext(source)
    except StopAsyncIteration:
        raise _Ended from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
