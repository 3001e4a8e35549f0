"""A reader of streams, as quick or as slow as the test wants it."""

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any, Literal

from nova.domain.stream import Piece


class Reader:
    """Keeps what comes. With ``room`` it is full after so many pieces, until :meth:`read` makes room again."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.pieces: list[Piece] = []
        self.prints: list[tuple[str, str]] = []
        self.begun: list[tuple[int, bool]] = []
        self.most = 0
        self._drained: Callable[[], None] = lambda: None
        self._some = asyncio.Event()

    def started(self, version: int, cold_start: bool) -> None:
        self.begun.append((version, cold_start))

    def piece(self, piece: Piece) -> bool:
        assert self.room > 0, "a piece came for a full sink"
        self.room -= 1
        self.pieces.append(piece)
        self._some.set()
        return self.room > 0

    def printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        self.prints.append((stream, text))
        self._some.set()

    def on_drained(self, drained: Callable[[], None]) -> None:
        self._drained = drained

    def read(self, more: int) -> None:
        self.room += more
        self._drained()

    async def until(self, condition: Callable[[], object], limit_s: float = 10.0) -> None:
        """Wait until something that came makes ``condition`` true."""
        async with asyncio.timeout(limit_s):
            while not condition():
                self._some.clear()
                await self._some.wait()

    async def until_values(self, values: list[Any]) -> None:
        """Wait until exactly these have come."""
        await self.until(lambda: self.values == values)

    @property
    def values(self) -> list[Any]:
        """The pieces as a client gets them: text, bytes or a value."""
        return [
            base64.b64decode(json.loads(piece.data)) if piece.kind == "b64" else json.loads(piece.data)
            for piece in self.pieces
        ]


class NullReader(Reader):
    """Counts bytes and keeps none."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def piece(self, piece: Piece) -> bool:
        self.size += len(piece.data)
        return True
