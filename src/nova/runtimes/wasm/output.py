"""What a module writes while it runs: prints, pieces of a streamed answer, or a command's result."""

import base64
import codecs
import errno
import json
import threading
from collections.abc import Callable
from typing import Final, NoReturn

OUTPUT_LIMIT: Final = 6 << 20
"""Bytes of a result."""
PRINT_LIMIT: Final = 512 << 10
"""Bytes of one call's prints to one stream; of what is more only the size is told."""
_HELD_LIMIT: Final = 8 << 20
"""Bytes of stdout that may turn out to be a command's result."""
_PIECE: Final = 8 << 10
_CUT: Final = 1 << 16
_OVERHEAD: Final = 64
"""Bytes of credit that a piece costs beside its data; the host reckons alike."""
_TAIL: Final = 4096
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")

Write = Callable[[bytes], None]


class Prints:
    """One stream of prints of one call, sent in pieces that are not too small."""

    def __init__(self, request_id: str, stream: str, write: Write) -> None:
        self._head = {"request_id": request_id, "stream": stream}
        self._write = write
        self._held = bytearray()
        self._sent = 0
        self._dropped = 0
        self.tail = b""

    def add(self, data: bytes) -> int:
        self.tail = (self.tail + data)[-_TAIL:]
        room = max(0, PRINT_LIMIT - self._sent - len(self._held))
        self._held += data[:room]
        self._dropped += len(data) - min(room, len(data))
        if len(self._held) >= _PIECE:
            self._send()
        return len(data)

    def end(self) -> None:
        """The call is over: send the rest."""
        if self._held or self._dropped:
            self._send()

    def _send(self) -> None:
        log = {**self._head, "text": self._held.decode("utf-8", "replace"), "dropped": self._dropped}
        self._sent += len(self._held)
        self._held.clear()
        self._dropped = 0
        self._write(json.dumps({"log": log}).encode() + b"\n")


class Result:
    """stdout of a command in a call that does not stream: its last document is the result, what comes before it prints."""

    def __init__(self, prints: Prints) -> None:
        self._prints = prints
        self._held = bytearray()
        self._lost = False

    def add(self, data: bytes) -> int:
        self._held += data
        if len(self._held) > _HELD_LIMIT:
            cut = self._held.rfind(b"\n", 0, len(self._held) - 1) + 1
            self._lost = cut == 0 or self._lost
            self._prints.add(bytes(self._held[: cut or None]))
            del self._held[: cut or None]
        return len(data)

    def all_are_prints(self) -> None:
        self._prints.add(bytes(self._held))

    def document(self) -> bytes | None:
        """The result; None when there was too much of it."""
        text = bytes(self._held).strip()
        if self._lost:
            return None
        if text and not is_json(text):
            prints, found, last = text.rpartition(b"\n")
            if found and is_json(last):
                self._prints.add(prints + b"\n")
                return last
        return document(text)


class Pieces:
    """stdout in a call that streams. Beyond its credit the module waits in its write. ``wait`` lets the host's lines be read
    for a moment and says whether the call goes on."""

    def __init__(self, tag: bytes, credit: int | None, write: Write, wait: Callable[[threading.Event], bool]) -> None:
        self._tag = tag
        self._credit: float = float("inf") if credit is None else credit
        self._write = write
        self._wait = wait
        self._granted = threading.Event()
        self._text = codecs.getincrementaldecoder("utf-8")()

    def grant(self, size: int) -> None:
        self._credit += size
        self._granted.set()

    def add(self, data: bytes) -> int:
        for start in range(0, len(data), _CUT):
            if not self._send(data[start : start + _CUT]):
                return -errno.EPIPE
        return len(data)

    def _send(self, data: bytes) -> bool:
        try:
            text = self._text.decode(data)
            kind, body = b"text", json.dumps(text).encode()
            if not text:
                return True
        except UnicodeDecodeError:
            held, _ = self._text.getstate()
            self._text.reset()
            kind, body = b"b64", b'"%b"' % base64.b64encode(held + data)
        while self._credit <= 0:
            self._granted.clear()
            if self._credit <= 0 and not self._wait(self._granted):
                return False
        self._credit -= len(body) + _OVERHEAD
        self._write(b'{%b"chunk": {"enc": "%b", "data": %b}}\n' % (self._tag, kind, body))
        return True

    def end(self) -> None:
        """Send a character that never became whole."""
        held, _ = self._text.getstate()
        if held:
            self._text.reset()
            self._write(b'{%b"chunk": {"enc": "b64", "data": "%b"}}\n' % (self._tag, base64.b64encode(held)))


def document(text: bytes) -> bytes:
    """JSON on one line: what a module answered if it is JSON, a string of it if it is other text, null if it is nothing."""
    if is_json(text):
        return text.translate(_ONE_LINE)
    return json.dumps(text.decode("utf-8", "replace")).encode() if text else b"null"


def is_json(text: bytes) -> bool:
    """One document, without NaN and Infinity."""
    try:
        _decode(text.decode())
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decode: Final = json.JSONDecoder(parse_constant=_no_constant).decode
