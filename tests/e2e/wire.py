"""HTTP as bytes, for requests that no library would send."""

import json
import socket
from dataclasses import dataclass
from typing import Any

LIMIT_S = 60


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """The body as a problem document, which every refusal must be."""
        assert self.headers["content-type"] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        assert document["request_id"] == self.headers["x-request-id"]
        return document

    @property
    def code(self) -> str:
        code: str = self.problem["code"]
        return code


def talk(address: tuple[str, int], *pieces: bytes, hang_up: bool = False) -> Reply | None:
    """Send the pieces as they are and read one answer; None when the server closes without one.

    ``hang_up``: say that nothing more will come, as a client does whose upload broke off.
    """
    with socket.create_connection(address, timeout=LIMIT_S) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
            if hang_up:
                sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered already and reads no more
        return _read(sock)


def request(method: str, path: bytes, body: bytes = b"", *headers: bytes, length: int | None = None) -> bytes:
    """A request with Content-Length, which may lie."""
    lines = [b"%s %s HTTP/1.1" % (method.encode(), path), b"host: localhost", *headers]
    lines.append(b"content-length: %d" % (len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(path: bytes, *chunks: bytes) -> bytes:
    """A POST whose body comes in these chunks; the last chunk is the caller's to add."""
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % path
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def _read(sock: socket.socket) -> Reply | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = _receive(sock)
        if not piece:
            assert not data, f"half an answer: {data!r}"
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        piece = _receive(sock)
        assert piece, "the answer broke off"
        body += piece
    return Reply(int(first.split()[1]), headers, body)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""
