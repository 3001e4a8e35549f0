"""The pieces of one call, between its worker's line and whoever takes them.

Memory is bounded whoever is slow. A worker with one call at a time is not read while its sink is full, so that its handler
waits in a write. A multiplexing worker is always read, but may write :data:`CREDIT` bytes of a call's pieces ahead of what
was granted back to it; what comes for a full sink waits here.
"""

import binascii
import codecs
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Literal, get_args

import msgspec

from nova import payload
from nova.agent.frames import MAX_MESSAGE
from nova.agent.lines import PRINT_LIMIT
from nova.agent.worker import Chunk, Result
from nova.domain.stream import Piece, PieceKind, Sink
from nova.errors import FunctionError, NovaError

if TYPE_CHECKING:
    from nova.execution.channel_call import Call
    from nova.execution.channel_line import WorkerLine

OUTPUT_LIMIT: Final = 6 << 20
"""Bytes of a result, one that was collected from pieces included."""
CREDIT: Final = 64 << 10
"""Bytes of chunk lines that a multiplexing worker may write before it has to wait for more credit."""
_GRANT: Final = CREDIT // 4
_OVERHEAD: Final = 64
"""Bytes of credit that a piece costs beside its data, so that many small ones are no way around it."""
_MOST_HELD: Final = CREDIT + MAX_MESSAGE
"""A line is begun with any credit at all, so one of the largest may come on top."""
_KINDS: Final[dict[str, PieceKind]] = {kind: kind for kind in get_args(PieceKind)}
_NEVER: Final = float("inf")
_string = msgspec.json.Decoder(str).decode


def checked(chunk: Chunk) -> Piece:
    """Raises NovaError when the data is not what the kind promises."""
    kind = _KINDS[chunk.kind]
    if kind == "json":
        return Piece(kind, payload.check(chunk.data, limit=MAX_MESSAGE, empty=b""))
    try:
        _string(chunk.data)
        if kind == "b64":
            binascii.a2b_base64(chunk.data[1:-1], strict_mode=True)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error) as error:
        raise NovaError("bad_payload", f"a piece is not valid {kind}: {error}") from None
    return Piece(kind, chunk.data)


class Collected:
    """Pieces of a call that does not stream: text is joined, anything else makes an array. Implements what Stream does."""

    __slots__ = ("_array", "_text", "answer")

    def __init__(self) -> None:
        self._text: bytearray | None = bytearray()
        """all of it while there was nothing but text"""
        self._array = bytearray()
        self.answer: Result | None = None

    def begin(self, line: "WorkerLine") -> None:
        """The call is on its way; nothing to do."""

    def take(self, piece: Piece) -> None:
        if piece.kind != "text":
            self._text = None
        if self._text is not None and len(self._text) <= OUTPUT_LIMIT:
            self._text += piece.data[1:-1]
        if len(self._array) <= OUTPUT_LIMIT:
            self._array += b", "
            self._array += b'{"b64": %b}' % piece.data if piece.kind == "b64" else piece.data

    def wait(self, result: Result) -> bool:
        return False

    def result(self) -> tuple[bytes | None, FunctionError | None]:
        """What a handler that returned nothing has said piece by piece."""
        if not self._array:
            return b"null", None
        output = b"[%b]" % bytes(self._array[2:]) if self._text is None else b'"%b"' % bytes(self._text)
        return (output, None) if len(output) <= OUTPUT_LIMIT else (None, too_large())

    def close(self) -> None:
        self._text = None
        self._array.clear()


class Stream:
    """Pieces of a streaming call on their way to its sink.

    ``limit`` is in bytes, of all pieces as whoever gets them counts them. ``idle_s`` 0: it may be silent for however long.
    Time in which the sink is full is the reader's, not the handler's silence.
    """

    __slots__ = (
        "_call",
        "_closed",
        "_consumed",
        "_full",
        "_held",
        "_held_bytes",
        "_idle_s",
        "_limit",
        "_line",
        "_prints",
        "_sink",
        "_total",
        "answer",
        "deadline",
    )

    def __init__(self, call: "Call", sink: Sink, *, limit: int, idle_s: float) -> None:
        self._call = call
        self._sink = sink
        self._limit = limit
        self._idle_s = idle_s
        self._line: WorkerLine | None = None
        self._total = 0
        self._full = False
        self._closed = False
        self._held: deque[Piece] = deque()
        self._held_bytes = 0
        self._consumed = 0
        self._prints = (_Prints("stdout"), _Prints("stderr"))
        self.answer: Result | None = None
        """the worker's answer, which waits for the pieces before it"""
        self.deadline = _NEVER
        """when the silence has been too long; monotonic"""

    def begin(self, line: "WorkerLine") -> None:
        """The call goes to its worker."""
        self._line = line
        self._sink.on_drained(self._drained)
        self._listen()

    def take(self, piece: Piece) -> None:
        """The next piece from the worker."""
        if self._closed:
            return
        self._total += _size(piece)
        if self._total > self._limit:
            text = f"the stream is larger than {self._limit >> 20} MiB, the limit that limits.stream_mb sets"
            self._call.owner.call_overdue(self._call, FunctionError("Nova.OutputTooLarge", text))
        elif not self._full:
            self._give(piece)
            self._grant(_GRANT)
        else:
            self._hold(piece)

    def _give(self, piece: Piece) -> None:
        self._consumed += len(piece.data) + _OVERHEAD
        if not self._sink.piece(piece):
            self._full = True
            self.deadline = _NEVER
            if self._line is not None and not self._line.multiplex:
                self._line.pause()
        elif self._idle_s:
            self.deadline = time.monotonic() + self._idle_s

    def _hold(self, piece: Piece) -> None:
        self._held.append(piece)
        self._held_bytes += len(piece.data) + _OVERHEAD
        if self._held_bytes > _MOST_HELD and self._line is not None:
            self._call.owner.line_broken(self._line, "the worker wrote more pieces than it had credit for")

    def _grant(self, least: int) -> None:
        """Give back what was taken, once that is worth a line."""
        if not self._full and self._consumed >= least and self._line is not None and self._line.multiplex:
            self._line.grant(self._call, self._consumed)
            self._consumed = 0

    def _drained(self) -> None:
        """The sink can take more."""
        if self._closed or not self._full or self._line is None:
            return
        self._full = False
        while self._held and not self._full:
            piece = self._held.popleft()
            self._held_bytes -= len(piece.data) + _OVERHEAD
            self._give(piece)
        if self._full:
            return
        self._listen()
        self._grant(1)
        if self.answer is not None:
            self._line.answer(self._call, self.answer)
        else:
            self._line.resume()

    def _listen(self) -> None:
        """From now on silence counts."""
        if self._idle_s:
            self.deadline = time.monotonic() + self._idle_s
            self._call.deadlines.add(self)

    def expire(self) -> None:
        """It was silent for too long."""
        if not self._call.done():
            text = f"the stream was silent for {self._idle_s:g} s (stream_idle_s)"
            self._call.owner.call_overdue(self._call, FunctionError("Nova.Timeout", text))

    def wait(self, result: Result) -> bool:
        """Whether the answer has to wait; then it comes when the pieces before it are taken."""
        if not self._full or self._closed:
            return False
        self.answer = result
        return True

    def result(self) -> tuple[bytes | None, FunctionError | None]:
        return b"null", None

    def printed(self, stderr: bool, data: bytes) -> None:
        """What the handler printed; beyond :data:`PRINT_LIMIT` of each stream the sink hears nothing."""
        prints = self._prints[stderr]
        if not self._closed and (text := prints.text(data)):
            self._sink.printed(prints.name, text)

    def close(self) -> None:
        """The call has ended, however it did."""
        self._closed = True
        self._held.clear()
        self._call.deadlines.discard(self)


class _Prints:
    """One stream's bytes as text, cut anywhere."""

    __slots__ = ("_decode", "_room", "name")

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.name = name
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._room = PRINT_LIMIT

    def text(self, data: bytes) -> str:
        data = data[: self._room]
        self._room -= len(data)
        return self._decode(data)


def _size(piece: Piece) -> int:
    if piece.kind == "json":
        return len(piece.data)
    return len(piece.data) - 2 if piece.kind == "text" else (len(piece.data) - 2) * 3 // 4


def too_large() -> FunctionError:
    return FunctionError("Nova.OutputTooLarge", f"the result is larger than {OUTPUT_LIMIT} bytes")
