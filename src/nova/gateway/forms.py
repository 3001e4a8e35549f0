"""What a streamed answer looks like on the wire: events for programs that follow a call, bytes for those that want its output."""

import base64
import binascii
import json
from typing import Protocol

import msgspec.structs

from nova.clock import Clock
from nova.domain.call import CallResult, Phases
from nova.domain.pieces import Printed, Started
from nova.domain.stream import Piece
from nova.errors import FunctionError, NovaError
from nova.gateway import urls
from nova.http.exchange import HeaderList
from nova.payload import decode, encode

_BOOL = (b"false", b"true")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_LINES = (b"content-type", b"application/x-ndjson")
_BYTES = (b"content-type", b"application/octet-stream")


class Form(Protocol):
    """One answer's way of being written. ``status`` and ``headers`` count once the first piece was given, or :meth:`whole`.

    ``failure_is_a_status``: a function that fails before its first piece is answered with 502, not with a body of this form.
    """

    status: int
    headers: HeaderList
    logs: bool
    comment: bytes
    failure_is_a_status: bool

    def begin(self, started: Started) -> bytes:
        """What stands before everything else."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """Raises ``invalid_response`` for one that cannot be written."""
        ...

    def printed(self, item: Printed) -> bytes: ...

    def done(self, result: CallResult) -> bytes:
        """The end of a call that gave pieces."""
        ...

    def failed(self, error: FunctionError) -> bytes | None:
        """The end of one that failed after that; None: the answer just breaks off."""
        ...

    def refused(self, refusal: NovaError) -> bytes | None: ...

    def whole(self, started: Started, result: CallResult) -> bytes:
        """The body of a call that ended without a piece."""
        ...


class Events:
    """Server-sent events: start, then chunk and log as they come, then one done or error."""

    comment = b": still here\n\n"
    failure_is_a_status = False

    def __init__(self, request_id: str, clock: Clock, *, logs: bool) -> None:
        self.status = 200
        self.headers: HeaderList = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        self.logs = logs
        self._request_id = request_id
        self._clock = clock
        self._number = 0

    def begin(self, started: Started) -> bytes:
        data = b'{"request_id":"%s","version":%d,"cold_start":%s}' % (
            self._request_id.encode(),
            started.version,
            _BOOL[started.cold_start],
        )
        return self._event(b"start", data)

    def piece(self, piece: Piece) -> bytes:
        return self._event(b"chunk", b'{"%s":%s}' % (piece.kind.encode(), piece.data))

    def printed(self, item: Printed) -> bytes:
        line = {"stream": item.stream, "text": _sound(item.text), "time": self._clock.now()}
        return self._event(b"log", encode(line))

    def done(self, result: CallResult) -> bytes:
        phases = {f"{name[:-3]}_ms": getattr(result.phases, name) / 1000 for name in _PHASES}
        data = b'{"output":%s,"duration_ms":%.3f,"phases":%s}' % (
            result.output or b"null",
            result.duration_us / 1000,
            encode(phases),
        )
        return self._event(b"done", data)

    def failed(self, error: FunctionError) -> bytes:
        return self._event(b"error", encode(error.as_dict()))

    def refused(self, refusal: NovaError) -> bytes:
        name = "".join(part.capitalize() for part in refusal.code.split("_"))
        error = {"type": f"Nova.{name}", "message": _sound(refusal.detail), "stack": [], "code": refusal.code}
        return self._event(b"error", encode(error))

    def whole(self, started: Started, result: CallResult) -> bytes:
        start = self.begin(started)
        end = self.done(result) if result.error is None else self.failed(result.error)
        return start + end

    def _event(self, name: bytes, data: bytes) -> bytes:
        self._number += 1
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (self._number, name, data)


class Bytes:
    """What the handler gives, byte for byte: text as UTF-8, base64 decoded, any other value as a line of JSON."""

    comment = b""
    logs = False
    failure_is_a_status = True

    def __init__(self) -> None:
        self.status = 200
        self.headers: HeaderList = [_BYTES, (b"cache-control", b"no-store")]

    def begin(self, started: Started) -> bytes:
        return b""

    def piece(self, piece: Piece) -> bytes:
        return raw(piece)

    def printed(self, item: Printed) -> bytes:
        return b""

    def done(self, result: CallResult) -> bytes:
        return b""

    def failed(self, error: FunctionError) -> None:
        return None

    def refused(self, refusal: NovaError) -> None:
        return None

    def whole(self, started: Started, result: CallResult) -> bytes:
        output = result.output or b"null"
        if output == b"null":
            return b""
        return raw(Piece("text" if output.startswith(b'"') else "json", output))


class UrlBytes(Bytes):
    """The same as the answer of a function URL: the first piece may be the head, an object with ``statusCode``."""

    def __init__(self) -> None:
        super().__init__()
        self.headers = []
        self._first = True
        self._silent = False

    def piece(self, piece: Piece) -> bytes:
        if self._first:
            self._first = False
            head = urls.prelude(piece.data) if piece.kind == "json" else None
            if head is not None:
                self.status, self.headers = head.status, head.headers
                self._silent = head.status in urls.BODYLESS
                return b"" if self._silent else head.body
            self.headers = [{"text": _TEXT, "json": _LINES, "b64": _BYTES}[piece.kind]]
        return b"" if self._silent else raw(piece)

    def whole(self, started: Started, result: CallResult) -> bytes:
        if result.output is None or result.output == b"null":
            return b""
        answer = urls.answer(result.output)
        self.status, self.headers = answer.status, answer.headers
        return answer.body


def raw(piece: Piece) -> bytes:
    """A piece as bytes. Raises ``invalid_response``."""
    if piece.kind == "json":
        return piece.data + b"\n"
    if piece.kind == "text":
        return _text(piece.data).encode("utf-8", "replace")
    encoded = piece.data[1:-1] if b"\\" not in piece.data else _text(piece.data).encode("utf-8", "replace")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise NovaError("invalid_response", "a piece of the function's answer is not base64") from None


def _text(data: bytes) -> str:
    try:
        found: str = decode(data)
    except msgspec.DecodeError:
        found = json.loads(data)  # takes halves of surrogate pairs, which become question marks
    return found


def _sound(value: str) -> str:
    """Text that JSON in UTF-8 can hold."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


_PHASES = [field.name for field in msgspec.structs.fields(Phases)]
