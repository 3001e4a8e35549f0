"""The public Lambda durable-execution protocol as a client speaks it: HTTP to the guest API of the instance.

It is the way where the host does not listen on the worker's own line, and for processes that a handler has forked.
"""

import os
import socket
from typing import Final
from urllib.parse import quote, urlsplit

_PREFIX: Final = "/2025-12-01/durable-executions/"
_READ: Final = 1 << 16


class Http:
    """One connection, for one run. Not for two threads at once."""

    def __init__(self, arn: str, request_id: str) -> None:
        self._arn = arn
        self._request_id = request_id
        self._link: socket.socket | None = None
        self._head = self._place = b""

    def checkpoint(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError."""
        return self._ask(b"POST", b"checkpoint", body)

    def state(self, token: str, marker: str) -> tuple[int, bytes]:
        """The operations behind ``marker``. Raises OSError."""
        return self._ask(b"GET", f"state?CheckpointToken={quote(token, safe='')}&Marker={marker}".encode(), b"")

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    def _ask(self, method: bytes, what: bytes, body: bytes) -> tuple[int, bytes]:
        link = self._link or self._connect()
        head = b"%b %b/%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n"
        link.sendall(head % (method, self._place, what, self._head, len(body)) + body)
        return _answer(link)

    def _connect(self) -> socket.socket:
        url = urlsplit(os.environ.get("NOVA_API_URL", ""))
        if url.hostname is None or url.port is None:
            raise OSError("this instance has no guest API, so nothing can be recorded")
        self._link = link = socket.create_connection((url.hostname, url.port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = (f"Host: {url.netloc}", f"X-Nova-Request-Id: {self._request_id}", "Content-Type: application/json", "")
        self._head = "\r\n".join(lines).encode()
        self._place = f"{_PREFIX}{quote(self._arn, safe='')}".encode()
        return link


def _answer(link: socket.socket) -> tuple[int, bytes]:
    """Status and body. A library for this costs more than the way to the platform and back."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        _more(link, data)
    status = int(data[9:12])
    at = data.lower().find(b"\r\ncontent-length:", 0, end)
    if at < 0:
        raise OSError("an answer without a length")
    length = int(data[at + 17 : data.find(b"\r\n", at + 17)])
    while len(data) < end + 4 + length:
        _more(link, data)
    return status, bytes(data[end + 4 : end + 4 + length])


def _more(link: socket.socket, data: bytearray) -> None:
    piece = link.recv(_READ)
    if not piece:
        raise OSError("the connection ended")
    data += piece
