"""Who may speak to an agent that others can reach too: only the host of this instance, which shows its token first.

Everybody else is cut off, and the instance goes on waiting for its host.
"""

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nova.agent.config import AgentConfig
from nova.agent.control import PARTIAL_HELLO_S, known_host
from nova.agent.frames import FrameDecoder, FrameError
from nova.agent.reactor import PollReactor
from nova.agent.relay_codec import CONTROL, DATA, PREAMBLE, PacketDecoder, PacketError, PreambleFinder

MAX_VISITORS: Final = 16
"""Who has not shown a token yet; when there are more, the oldest is turned away."""
_MAX_HELLO: Final = 16 << 10
"""Bytes before and with a Hello."""
_READ: Final = 1 << 16


class HelloReader:
    """Reads what a relay sends up to its Hello, sans I/O."""

    def __init__(self, config: AgentConfig, skip: int = 0) -> None:
        """``skip``: bytes before the preamble that do not count."""
        self._config = config
        self._finder = PreambleFinder(skip)
        self._packets = PacketDecoder()
        self._frames = FrameDecoder()
        self.greeted = False
        """the preamble has come, and wants to be answered"""
        self.seen = b""
        """everything behind the preamble, for whoever goes on reading"""

    def feed(self, data: bytes) -> bool | None:
        """True: the host. False: somebody else. None: not known yet."""
        try:
            if not self.greeted:
                rest = self._finder.feed(data)
                if rest is None:
                    return None
                self.greeted, data = True, rest
            self.seen += data
            for packet in self._packets.feed(data):
                if packet.stream != CONTROL or packet.kind != DATA:
                    return False
                for frame in self._frames.feed(packet.data):
                    return known_host(frame, self._config) is not None
        except (PacketError, FrameError):
            return False
        return None if len(self.seen) <= _MAX_HELLO else False


@dataclass(slots=True, eq=False)
class _Visitor:
    fd: int
    reader: HelloReader
    since: float


class Door:
    """Where the host's relay is awaited: a listening socket, or a serial port that only the host is at.

    ``welcome`` is told once for each :meth:`open`: the descriptor of the host's byte stream, which is the caller's from
    then on, and what was read of it behind the preamble. Nobody else is let in until the next ``open``.
    """

    def __init__(
        self, reactor: PollReactor, listener: socket.socket | None, port: int, welcome: Callable[[int, bytes], None]
    ) -> None:
        """Either ``listener``, or ``port``: the descriptor of a serial port (-1: none)."""
        self._reactor = reactor
        self._listener = listener
        self._port = port
        self._welcome = welcome
        self._visitors: list[_Visitor] = []
        self._config: AgentConfig | None = None
        if listener is not None:
            listener.setblocking(False)

    def open(self, config: AgentConfig) -> None:
        """Wait for the host that knows the token of ``config``."""
        self._config = config
        if self._listener is not None:
            self._reactor.on_readable(self._listener.fileno(), self._accept)
        else:
            # What an earlier host sent and nobody read may still lie in the port.
            self._meet(os.dup(self._port), HelloReader(config, skip=1 << 62))

    def close(self) -> None:
        """Nobody is let in any more."""
        if self._listener is not None:
            self._reactor.on_readable(self._listener.fileno(), None)
        for visitor in list(self._visitors):
            self._dismiss(visitor)

    def deadline(self) -> float | None:
        """When somebody will have been silent for too long."""
        if self._listener is None:
            return None
        return min((visitor.since + PARTIAL_HELLO_S for visitor in self._visitors), default=None)

    def check_deadline(self) -> None:
        at = self.deadline()
        if at is not None and time.monotonic() >= at:
            self._dismiss(self._visitors[0])

    def _accept(self) -> None:
        assert self._listener is not None
        assert self._config is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self._visitors) >= MAX_VISITORS:
            self._dismiss(self._visitors[0])
        self._meet(sock.detach(), HelloReader(self._config))

    def _meet(self, fd: int, reader: HelloReader) -> None:
        os.set_blocking(fd, False)
        visitor = _Visitor(fd, reader, time.monotonic())
        self._visitors.append(visitor)
        self._reactor.on_readable(fd, lambda: self._listen_to(visitor))

    def _listen_to(self, visitor: _Visitor) -> None:
        try:
            data = os.read(visitor.fd, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        reader = visitor.reader
        fresh = not reader.greeted
        known = reader.feed(data) if data else False
        if fresh and reader.greeted and known is not False:
            known = known if _answered(visitor.fd) else False
        if known:
            self._reactor.on_readable(visitor.fd, None)
            self._visitors.remove(visitor)
            self.close()
            self._welcome(visitor.fd, reader.seen)
        elif known is False:
            self._dismiss(visitor)
            if self._listener is None:
                self._wait_at_port()

    def _dismiss(self, visitor: _Visitor) -> None:
        self._visitors.remove(visitor)
        self._reactor.on_readable(visitor.fd, None)
        os.close(visitor.fd)

    def _wait_at_port(self) -> None:
        """Nobody is at the other end, or not the host. A port without anybody is always readable and at its end, so ask
        only when something changes there."""
        changes = select.epoll()
        changes.register(self._port, select.EPOLLIN | select.EPOLLET)
        changes.poll(0)

        def changed() -> None:
            self._reactor.on_readable(changes.fileno(), None)
            changes.close()
            if self._config is not None:
                self.open(self._config)

        self._reactor.on_readable(changes.fileno(), changed)
        if _occupied(self._port):  # since it was last read
            changed()


def _occupied(port: int) -> bool:
    poll = select.poll()
    poll.register(port, 0)
    return not poll.poll(0)


def _answered(fd: int) -> bool:
    try:
        return os.write(fd, PREAMBLE) == len(PREAMBLE)
    except OSError:
        return False
