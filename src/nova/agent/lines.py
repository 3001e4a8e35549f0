"""Worker lines and prints, sans I/O: cutting a byte stream into lines, and keeping the first part of what is printed."""

from typing import Final

from nova.agent.frames import MAX_MESSAGE

PRINT_LIMIT: Final = 256 << 10
"""Bytes of each of stdout and stderr that are kept per call."""


class LineReader:
    """Cuts worker output into lines without their LF. A line longer than ``limit`` bytes is skipped and comes out as None.

    Memory is bounded by ``limit`` plus one read, whatever the worker writes.
    """

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes | None]:
        buffer = self._buffer
        if not buffer and not self._skipping and data.find(b"\n") == len(data) - 1 <= self._limit:
            return [data[:-1]]  # by far the commonest: one read is one line
        lines: list[bytes | None] = []
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if self._skipping or len(buffer) + end - start > self._limit:
                lines.append(None)
                self._skipping = False
            else:
                buffer += memoryview(data)[start:end]
                lines.append(bytes(buffer))
            buffer.clear()
            start = end + 1
        if not self._skipping:
            if len(buffer) + len(data) - start > self._limit:
                self._skipping = True
                buffer.clear()
            else:
                buffer += memoryview(data)[start:]
        return lines


class PrintBuffer:
    """What one call printed on one stream: the first :data:`PRINT_LIMIT` bytes, then a marker with the number cut."""

    __slots__ = ("_kept", "_limit", "_size", "_total")

    def __init__(self, limit: int = PRINT_LIMIT) -> None:
        self._limit = limit
        self._kept: list[bytes] = []
        self._size = 0
        self._total = 0

    def add(self, data: bytes) -> None:
        self._total += len(data)
        room = self._limit - self._size
        if room > 0:
            piece = data if len(data) <= room else data[:room]
            self._kept.append(piece)
            self._size += len(piece)

    def miss(self, size: int) -> None:
        """``size`` bytes were printed that nobody has."""
        self._total += size

    def take(self) -> str:
        """The text so far; the buffer is empty afterwards. Bytes that are not UTF-8 become U+FFFD."""
        if not self._total:
            return ""
        data = b"".join(self._kept)
        cut = self._total - len(data)
        if cut:
            data = whole_characters(data)
            cut = self._total - len(data)
        text = data.decode("utf-8", "replace").replace("\0", "\ufffd")
        self._kept.clear()
        self._size = self._total = 0
        return f"{text}\n[… {cut} bytes cut]\n" if cut else text


def whole_characters(data: bytes) -> bytes:
    """``data`` without a UTF-8 sequence that its end cuts in half."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return data if needed <= back else data[:-back]
    return data
