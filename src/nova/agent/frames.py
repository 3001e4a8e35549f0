"""Frames between host and agent, sans I/O.

A frame is a 4-byte big-endian length and that many bytes of one JSON object whose members stand in a fixed order::

    {"type":1,"id":3,"size":8,"head":{...},"payload":{"a": 1}}

``size`` is the byte length of ``payload``; 0 means that the member is absent. Only ``head`` is ever parsed: a payload is
cut out by its size, so it passes through without being decoded.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

HELLO: Final = 0
INIT: Final = 1
RESP: Final = 3
PING: Final = 4
STOP: Final = 5
RELOAD: Final = 6
STATE_GET: Final = 8
STATE_PUT: Final = 9
STATE_DELETE: Final = 10
STATE_LIST: Final = 11
STATE_RESP: Final = 12
CANCEL: Final = 15
ERROR: Final = 18
WORKER_EXIT: Final = 19
ADD_WORKER: Final = 43
KILL_WORKER: Final = 44
CALL: Final = 50
CALL_RESP: Final = 51
FREEZE: Final = 60
THAW: Final = 61
GUEST_QUESTIONS: Final = frozenset({STATE_GET, STATE_PUT, STATE_DELETE, STATE_LIST, CALL})
"""What the agent asks on behalf of the code inside; its ids are even."""
GUEST_ANSWERS: Final = frozenset({STATE_RESP, CALL_RESP})
SHELL_TYPES: Final = range(20, 43)
"""Shell, file and process messages: for interactive sandboxes only."""

PROTOCOL: Final = 1
MAX_MESSAGE: Final = 8 << 20
"""Largest frame body and largest worker line, in bytes."""
MAX_HEAD: Final = 256 << 10
MIN_MESSAGE: Final = 2

_PREFIX = re.compile(rb'\{"type":(0|[1-9]\d{0,4}),"id":(0|[1-9]\d{0,18}),"size":(0|[1-9]\d{0,9}),"head":')
_PAYLOAD = b',"payload":'


class FrameError(Exception):
    """The peer broke the framing; the connection is of no further use. ``code`` goes into the Error frame."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Frame:
    type: int
    id: int
    head: Mapping[str, Any]
    payload: bytes = b""


def encode(kind: int, frame_id: int, head: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of one frame, length included. ``payload`` is JSON that somebody else has checked.

    Raises :class:`FrameError` ``too_large`` when head or frame exceed their limits; nothing oversize is ever sent.
    """
    head_bytes = json.dumps(head, separators=(",", ":")).encode()
    tail = b"".join((_PAYLOAD, payload)) if payload else b""
    body = b'{"type":%d,"id":%d,"size":%d,"head":%b%b}' % (kind, frame_id, len(payload), head_bytes, tail)
    if len(head_bytes) > MAX_HEAD or len(body) > MAX_MESSAGE:
        raise FrameError("too_large", f"a frame of {len(body)} bytes with a head of {len(head_bytes)} is too large")
    return len(body).to_bytes(4, "big") + body


def decode(body: bytes) -> Frame:
    """Parse the body of one frame. Raises :class:`FrameError` ``bad_frame``."""
    match = _PREFIX.match(body)
    if match is None or not body.endswith(b"}"):
        raise FrameError("bad_frame", "the frame does not have the fixed layout")
    kind, frame_id, size = (int(group) for group in match.groups())
    head_end, payload = len(body) - 1, b""
    if size:
        start = len(body) - 1 - size
        head_end = start - len(_PAYLOAD)
        if head_end < match.end() or body[head_end:start] != _PAYLOAD:
            raise FrameError("bad_frame", "the payload is not where its size says")
        payload = body[start:-1]
    if head_end - match.end() > MAX_HEAD:
        raise FrameError("bad_frame", f"the head is larger than {MAX_HEAD} bytes")
    try:
        head = json.loads(body[match.end() : head_end])
    except (ValueError, RecursionError):
        raise FrameError("bad_frame", "the head is not valid JSON") from None
    if not isinstance(head, dict):
        raise FrameError("bad_frame", "the head is not an object")
    return Frame(kind, frame_id, head, payload)


class FrameDecoder:
    """Cuts a byte stream into frames. Memory is bounded by :data:`MAX_MESSAGE` plus one read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def partial(self) -> bool:
        """Some bytes of an unfinished frame have arrived."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Every frame that ``data`` completes. Raises :class:`FrameError` for a length or layout that cannot be."""
        buffer = self._buffer
        buffer += data
        frames = []
        while len(buffer) >= 4:
            length = int.from_bytes(buffer[:4], "big")
            if not MIN_MESSAGE <= length <= MAX_MESSAGE:
                raise FrameError("bad_length", f"a frame of {length} bytes is not acceptable")
            if len(buffer) < 4 + length:
                break
            frames.append(decode(bytes(buffer[4 : 4 + length])))
            del buffer[: 4 + length]
        return frames


PING_ID: Final = 1
"""Of all pings where the host need not say Hello, so that a quiet agent knows them without parsing."""
QUIET_PING: Final = encode(PING, PING_ID, {})
QUIET_PONG: Final = encode(RESP, PING_ID, {"ok": True, "workers": 1})
