"""Connections of processes in this instance, on a poll loop: one request at a time each, answered now or later."""

import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from typing import Final

from nova.agent.control import Poller
from nova.agent.guest_http import BadRequest, Request, RequestReader, TakeChunk, answer

PROBLEM: Final = "application/problem+json"
MAX_CONNECTIONS: Final = 64
"""Open at once; further ones wait in the backlog."""
_BACKLOG: Final = 128
_READ: Final = 1 << 16
_FIRST: Final = 64
_SPARE: Final = 16 << 20
"""Bytes of a refused request that are read and dropped, so that its client gets to see the answer."""
_MAX_AHEAD: Final = 1 << 16
"""Bytes that are read beyond a request that is being answered."""


def listen(address: tuple[str, int]) -> socket.socket:
    """A listening socket on loopback. Raises OSError when the address is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


class Exchange:
    """One request and the way to answer it, once. ``gone`` is called instead when the client leaves before."""

    __slots__ = ("_connection", "gone", "request")

    def __init__(self, connection: "Connection", request: Request) -> None:
        self._connection = connection
        self.request = request
        self.gone: Callable[[], None] | None = None

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] = {}) -> None:
        """Nothing happens when the client has gone."""
        self._connection.answer(self, status, body, headers)

    def refuse(self, status: int, code: str, detail: str) -> None:
        """A problem document."""
        body = json.dumps({"type": "about:blank", "status": status, "code": code, "detail": detail}).encode()
        self.answer(status, body, {"Content-Type": PROBLEM})


Serve = Callable[[Exchange], None]


class Server:
    """Accepts on a listening socket; every whole request goes to ``serve``."""

    def __init__(
        self, poller: Poller, serve: Serve, divert: Callable[[socket.socket, bytes], bool] = lambda _sock, _first: False
    ) -> None:
        """``divert`` gets each new connection with its first bytes, which are still to be read; True: it took it over."""
        self._poller = poller
        self.serve = serve
        self.divert = divert
        self.refused: Callable[[BadRequest], None] = lambda _bad: None
        """hears of requests that could not be read"""
        self.streams: Callable[[Request], TakeChunk | None] = lambda _request: None
        """see :class:`RequestReader`"""
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._paused = False

    def open(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        self._poller.watch(listener.fileno(), lambda: self._accept(listener))

    def adopt(self, sock: socket.socket) -> None:
        """Serve a connection, from here on."""
        sock.setblocking(False)
        self._connections.add(Connection(self, self._poller, sock))

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.adopt(sock)
        if len(self._connections) >= MAX_CONNECTIONS and not self._paused:
            self._paused = True
            for one in self._listeners:
                self._poller.unwatch(one.fileno())

    def left(self, connection: "Connection") -> None:
        self._connections.discard(connection)
        if self._paused and len(self._connections) < MAX_CONNECTIONS:
            self._paused = False
            for listener in self._listeners:
                self._poller.watch(listener.fileno(), lambda listener=listener: self._accept(listener))  # type: ignore[misc]


class Connection:
    def __init__(self, server: Server, poller: Poller, sock: socket.socket) -> None:
        self._server = server
        self._poller = poller
        self._sock = sock
        self._fd = sock.fileno()
        self._reader = RequestReader()
        self._reader.streams = server.streams
        self._current: Exchange | None = None
        self._outgoing = bytearray()
        self._closing = False
        self._reading = True
        self._fresh = True
        self._stepping = False
        self._spare = 0
        poller.watch(self._fd, self._on_readable)

    def answer(self, exchange: Exchange, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        if exchange is not self._current:
            return
        self._current = None
        self._closing = self._closing or not exchange.request.keep_alive
        self._write(answer(status, headers, body, keep_alive=not self._closing))
        if not self._closing:
            self._resume()
            self._go_on()

    def _go_on(self) -> None:
        """Begin each request that is whole, when the one before it is answered."""
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._current is None and not self._closing and (request := self._reader.next()) is not None:
                self._current = exchange = Exchange(self, request)
                self._server.serve(exchange)
        except BadRequest as bad:
            self._closing, self._spare = True, _SPARE
            body = json.dumps({"status": bad.status, "code": "bad_request", "detail": str(bad)}).encode()
            self._server.refused(bad)
            self._write(answer(bad.status, {"Content-Type": PROBLEM}, body, keep_alive=False))
        finally:
            self._stepping = False
        if self._current is None and not self._closing and self._reader.take_go_on():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _on_readable(self) -> None:
        try:
            if self._fresh and self._diverted():
                return
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or (self._closing and self._spare <= 0):
            self._lost()
            return
        if self._closing:
            self._spare -= len(data)
            return
        self._reader.feed(data)
        if self._current is not None and self._reader.buffered > _MAX_AHEAD:
            self._reading = False
            self._poller.unwatch(self._fd)
        self._go_on()

    def _diverted(self) -> bool:
        first = self._sock.recv(_FIRST, socket.MSG_PEEK)
        self._fresh = False
        if not first or not self._server.divert(self._sock, first):
            return False
        self._close()
        return True

    def _resume(self) -> None:
        if not self._reading:
            self._reading = True
            self._poller.watch(self._fd, self._on_readable)

    def _write(self, data: bytes) -> None:
        self._outgoing += data
        self._flush()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lost()
            return
        del self._outgoing[:sent]
        if self._outgoing:
            self._resume()  # who waits to write also reads: only watched descriptors are asked about
            self._poller.when_writable(self._fd, self._flush)
        elif self._closing and self._spare:
            self._poller.when_writable(self._fd, None)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
        elif self._closing:
            self._close()
        else:
            self._poller.when_writable(self._fd, None)

    def _lost(self) -> None:
        exchange, self._current = self._current, None
        self._close()
        if exchange is not None and exchange.gone is not None:
            exchange.gone()

    def _close(self) -> None:
        self._forget()
        self._sock.close()

    def _forget(self) -> None:
        self._closing = True
        if self._reading:
            self._poller.when_writable(self._fd, None)
            self._poller.unwatch(self._fd)
            self._reading = False
        self._server.left(self)
