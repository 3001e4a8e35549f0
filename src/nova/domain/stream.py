"""What a streaming call gives before it ends: pieces, in order, at the speed of whoever takes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

PieceKind = Literal["text", "json", "b64"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of a streamed answer.

    ``data`` is checked JSON on one line: a string for ``text`` and ``b64`` (base64 of bytes), any value for ``json``.
    """

    kind: PieceKind
    data: bytes


class Sink(Protocol):
    """Takes the pieces of one call. Nothing here blocks or raises; all of it is called on the event loop.

    A sink never drops a piece: one that is full says so, and whoever feeds it stops reading from the worker.
    """

    def started(self, version: int, cold_start: bool) -> None:
        """The call is on its way into an instance; called once, before the first piece."""
        ...

    def piece(self, piece: Piece) -> bool:
        """Take a piece. False: it was taken, and no more may come until ``drained`` was called."""
        ...

    def printed(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        """What the handler printed, as soon as it is known."""
        ...

    def on_drained(self, drained: Callable[[], None]) -> None:
        """``drained`` is to be called whenever a full sink can take more."""
        ...
