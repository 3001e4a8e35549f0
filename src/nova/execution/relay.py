"""The daemon's end of a relay: a control socket like a sandbox's, made from a byte stream to an instance elsewhere."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from nova.agent.relay import Relay
from nova.agent.relay_codec import PREAMBLE, PacketError, PreambleFinder
from nova.execution.channel_control import ControlLost

_READ: Final = 1 << 16
_SKIP: Final = 1 << 16
"""Bytes that an earlier connection or a console may have left in a serial port."""


async def relayed(stream: socket.socket) -> socket.socket:
    """A socket for :meth:`DirectChannel.connect`, carried through ``stream`` by the relay of an instance at its other end.

    ``stream`` is connected, any SOCK_STREAM, and belongs to the relay from here on, also when this fails. Waits until the
    other relay answers; the caller sets the limit. The relay ends when the returned socket or ``stream`` is closed.
    Raises :class:`ControlLost`.
    """
    loop = asyncio.get_running_loop()
    stream.setblocking(False)
    if stream.family in (socket.AF_INET, socket.AF_INET6):
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        first = await _greet(loop, stream)
        ours, theirs = socket.socketpair()
    except BaseException:
        stream.close()
        raise
    Relay(LoopReactor(loop), stream.detach(), theirs, lambda: None).start(first)
    return ours


async def _greet(loop: asyncio.AbstractEventLoop, stream: socket.socket) -> bytes:
    finder = PreambleFinder(_SKIP)
    try:
        await loop.sock_sendall(stream, PREAMBLE)
        while data := await loop.sock_recv(stream, _READ):
            rest = finder.feed(data)
            if rest is not None:
                return rest
    except PacketError as error:
        raise ControlLost(str(error)) from None
    except OSError as error:
        raise ControlLost(f"the agent is gone: {error.strerror}") from None
    raise ControlLost("the agent is gone")


class LoopReactor:
    """An event loop as a relay's reactor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._readers: set[int] = set()
        self._writers: set[int] = set()

    def on_readable(self, fd: int, call: Callable[[], None] | None) -> None:
        if call is None:
            if fd in self._readers:
                self._readers.discard(fd)
                self._loop.remove_reader(fd)
        elif fd not in self._readers:
            self._readers.add(fd)
            self._loop.add_reader(fd, call)

    def on_writable(self, fd: int, call: Callable[[], None] | None) -> None:
        if call is None:
            if fd in self._writers:
                self._writers.discard(fd)
                self._loop.remove_writer(fd)
        elif fd not in self._writers:
            self._writers.add(fd)
            self._loop.add_writer(fd, call)
