"""What is known of a stream when it has ended: its record says how much there was, not what."""

from collections.abc import Callable
from typing import Literal

from msgspec.structs import replace

from nova.domain.call import CallResult
from nova.domain.stream import Piece, Sink
from nova.payload import encode


class Counted:
    """Implements :class:`~nova.domain.stream.Sink`: passes everything on and counts the pieces."""

    def __init__(self, inner: Sink) -> None:
        self._inner = inner
        self._pieces = 0
        self._bytes = 0

    def started(self, version: int, cold_start: bool) -> None:
        self._inner.started(version, cold_start)

    def piece(self, piece: Piece) -> bool:
        self._pieces += 1
        self._bytes += len(piece.data)
        return self._inner.piece(piece)

    def printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        self._inner.printed(stream, text)

    def on_drained(self, drained: Callable[[], None]) -> None:
        self._inner.on_drained(drained)

    def recorded(self, result: CallResult) -> CallResult:
        """The result as its record keeps it: ``{"streamed": {"pieces": …, "bytes": …}}`` stands for an output."""
        if result.output is None:
            return result
        return replace(result, output=encode({"streamed": {"pieces": self._pieces, "bytes": self._bytes}}))
