"""HTTP/1.1 as it is spoken inside an instance, sans I/O: requests out of bytes, answers into bytes.

Strict and small: one request at a time, a body with ``Content-Length`` or in chunks, nothing folded, nothing guessed.
"""

import http
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote

MAX_HEAD: Final = 16 << 10
"""Bytes of a request's line and headers."""
MAX_BODY: Final = 6 << 20

_LINE = re.compile(rb"([A-Z]{1,16}) (/[!-~]*) HTTP/1\.1")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?\r\n")
_MAX_CHUNK_LINE: Final = 256


TakeChunk = Callable[[bytes], None]


class BadRequest(Exception):
    """What arrived is no request that can be answered; the connection ends after ``status``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """``path`` is decoded text; ``query`` has the last of repeated names; header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def keep_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


@dataclass(slots=True)
class _Head:
    request: Request
    length: int | None
    """None: the body comes in chunks"""
    asks_to_go_on: bool


class RequestReader:
    """Cuts a connection's bytes into requests. Holds at most one body, and what was read with its end."""

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._chunks = bytearray()
        self.streams: Callable[[Request], TakeChunk | None] = lambda _request: None
        """who takes the chunks of a body as they come, which then is empty in the request; None: nobody"""
        self._take: TakeChunk | None = None

    def feed(self, data: bytes) -> None:
        self._buffer += data

    @property
    def buffered(self) -> int:
        return len(self._buffer)

    def take_go_on(self) -> bool:
        """True once when the client waits for ``100 Continue`` before it sends the body."""
        head = self._head
        if head is None or not head.asks_to_go_on:
            return False
        head.asks_to_go_on = False
        return not self._buffer

    def next(self) -> Request | None:
        """The next whole request, or None while more must come. Raises :class:`BadRequest`."""
        if self._head is None:
            self._head = self._read_head()
            self._take = self.streams(self._head.request) if self._head and self._head.length is None else None
        head = self._head
        if head is None:
            return None
        body = self._read_chunks() if head.length is None else self._read_length(head.length)
        if body is None:
            return None
        self._head = None
        request = head.request
        return Request(request.method, request.path, request.query, request.headers, body)

    def _read_head(self) -> _Head | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end > MAX_HEAD or (end < 0 and len(self._buffer) > MAX_HEAD):
            raise BadRequest(431, f"request line and headers are larger than {MAX_HEAD} bytes")
        if end < 0:
            return None
        head = _parse_head(bytes(self._buffer[:end]), self._max_body)
        del self._buffer[: end + 4]
        return head

    def _read_length(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _read_chunks(self) -> bytes | None:
        while True:
            match = _CHUNK.match(self._buffer)
            if match is None:
                if len(self._buffer) > _MAX_CHUNK_LINE:
                    raise BadRequest(400, "a chunk has no size")
                return None
            size = int(match[1], 16)
            if size == 0:
                return self._read_trailers(match.end())
            if len(self._chunks) + size > self._max_body:
                raise _too_large(self._max_body)
            end = match.end() + size
            if len(self._buffer) < end + 2:
                return None
            if self._buffer[end : end + 2] != b"\r\n":
                raise BadRequest(400, "a chunk does not end where its size says")
            chunk = bytes(self._buffer[match.end() : end])
            if self._take is not None:
                self._take(chunk)
            else:
                self._chunks += chunk
            del self._buffer[: end + 2]

    def _read_trailers(self, start: int) -> bytes | None:
        """The body, when everything behind its last chunk is there; headers among that are dropped."""
        end = start if self._buffer.startswith(b"\r\n", start) else self._buffer.find(b"\r\n\r\n", start) + 2
        if end < start:
            if len(self._buffer) - start > MAX_HEAD:
                raise BadRequest(431, f"trailers are larger than {MAX_HEAD} bytes")
            return None
        body = bytes(self._chunks)
        self._chunks.clear()
        del self._buffer[: end + 2]
        return body


def _parse_head(data: bytes, max_body: int) -> _Head:
    first, *rest = data.split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise BadRequest(400, "the request line is not one of HTTP/1.1")
    headers: dict[str, str] = {}
    for text in rest:
        match = _HEADER.fullmatch(text)
        if match is None:
            raise BadRequest(400, "a header is malformed")
        name = match[1].decode("ascii").lower()
        if name in headers and name in ("content-length", "transfer-encoding", "authorization"):
            raise BadRequest(400, f"{name} is given twice")
        headers[name] = match[2].decode("latin-1")
    length = _length(headers, max_body)
    target, _, query = line[2].decode("ascii").partition("?")
    try:
        path = unquote(target, errors="strict")
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError:
        raise BadRequest(400, "the path or the query is not UTF-8, or has too many fields") from None
    asks = headers.get("expect", "").lower() == "100-continue"
    return _Head(Request(line[1].decode("ascii"), path, dict(pairs), headers), length, asks)


def _length(headers: Mapping[str, str], max_body: int) -> int | None:
    """Bytes of the body, or None when it comes in chunks."""
    coding = headers.get("transfer-encoding")
    text = headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or text is not None:
            raise BadRequest(400, "a body is either of content-length, or chunked")
        return None
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise BadRequest(400, "content-length is not a number")
    if int(text) > max_body:
        raise _too_large(max_body)
    return int(text)


def _too_large(limit: int) -> BadRequest:
    return BadRequest(413, f"the body is larger than {limit} bytes")


def answer(status: int, headers: Mapping[str, str], body: bytes, *, keep_alive: bool) -> bytes:
    """The bytes of one answer. Characters that would end a header are taken out of its value."""
    lines = [f"HTTP/1.1 {status} {_reason(status)}"]
    for name, value in headers.items():
        lines.append(f"{name}: {value.replace(chr(13), ' ').replace(chr(10), ' ')}")
    if status != 204:
        lines.append(f"Content-Length: {len(body)}")
    if not keep_alive:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + (b"" if status == 204 else body)


def _reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
