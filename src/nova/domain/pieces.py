"""What waits between a call that answers piece by piece and whoever sends the pieces on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from nova.domain.call import CallRequest, CallResult
from nova.domain.ports import Streamer
from nova.domain.stream import Piece

HIGH_WATER = 128 << 10
"""Bytes that wait before whoever gives pieces is asked to stop; twice as many and two pieces are held at most."""
_OVERHEAD = 64


@dataclass(frozen=True, slots=True)
class Started:
    """The call is on its way into an instance."""

    version: int
    cold_start: bool


@dataclass(frozen=True, slots=True)
class Printed:
    """What the handler printed."""

    stream: Literal["stdout", "stderr"]
    text: str


Item = Started | Piece | Printed


class Pieces:
    """Implements :class:`~nova.domain.stream.Sink`; one task takes out, in order, what came in.

    ``high_water`` in bytes. Prints count too, but nobody can be asked to stop printing: the capture of the call bounds them.
    """

    def __init__(self, high_water: int = HIGH_WATER) -> None:
        self._high_water = high_water
        self._items: list[Item] = []
        self._size = 0
        self._full = False
        self._drained: Callable[[], None] | None = None
        self._news = asyncio.Event()
        self.ended = False

    # Sink

    def started(self, version: int, cold_start: bool) -> None:
        self._put(Started(version, cold_start), 0)

    def piece(self, piece: Piece) -> bool:
        self._put(piece, len(piece.data) + _OVERHEAD)
        if self._size >= self._high_water:
            self._full = True
        return not self._full

    def printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        self._put(Printed(stream, text), len(text) + _OVERHEAD)

    def on_drained(self, drained: Callable[[], None]) -> None:
        self._drained = drained

    # The other end

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self._news.set()

    async def take(self, patience_s: float | None = None) -> list[Item]:
        """Everything that is there, as soon as there is something.

        Empty: the call has ended (:attr:`ended`), or nothing came for ``patience_s`` seconds. Until the next ``take`` as much
        again may come: whoever takes sends first what he has.
        """
        if not self._items and not self.ended:
            try:
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            except TimeoutError:
                return []
        items, self._items = self._items, []
        self._size = 0
        if not self.ended:
            self._news.clear()
        if self._full:
            self._full = False
            if self._drained is not None:
                self._drained()
        return items

    def _put(self, item: Item, size: int) -> None:
        self._items.append(item)
        self._size += size
        self._news.set()


@asynccontextmanager
async def streaming(
    streamer: Streamer, call: CallRequest
) -> AsyncIterator[tuple[Pieces, "asyncio.Future[CallResult]"]]:
    """A call under way, and what it gives. Whoever leaves the block early cancels it, and waits until it has ended."""
    pieces = Pieces()
    running = asyncio.ensure_future(streamer.stream(call, pieces))
    running.add_done_callback(lambda _: pieces.end())
    try:
        yield pieces, running
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # told already, or nobody is left to tell
