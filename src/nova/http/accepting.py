"""Accepting connections on a socket that several processes listen on: one at a time, so that each gets its share."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable

import structlog

from nova.http.shares import Share
from nova.service import Background

log = structlog.get_logger(__name__)
_PAUSE_S = 1.0
"""Until the next try, when there was no descriptor or memory for a connection."""
_GIVE_WAY_S = 0.001
"""for a process with fewer connections; then whoever is here takes it all the same"""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Turnstile:
    """One connection for each turn of the event loop.

    A loop that takes all that wait, as servers of asyncio and uvloop do, leaves the other processes without work when many
    clients connect at once. Taken one by one, connections go where there is time for them, and not to a process that has
    more than another (:mod:`nova.http.shares`).
    """

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], asyncio.Protocol],
        share: Share,
        connections: Callable[[], int],
        *,
        tls: ssl.SSLContext | None,
        handshake_s: float | None,
        goodbye_s: float | None,
    ) -> None:
        """``connections``: how many this process has."""
        self._sock = sock
        self._make = make
        self._share = share
        self._connections = connections
        self._tls, self._handshake_s, self._goodbye_s = tls, handshake_s, goodbye_s
        self._loop = asyncio.get_running_loop()
        self._later: asyncio.TimerHandle | None = None
        self._tasks = Background("accept")
        self._beginning = 0
        self._look()

    async def wait_closed(self) -> None:
        """Give up the connections whose handshake is not done."""
        await self._tasks.close()

    def close(self) -> None:
        """Accept no more, and close the socket. Connections that are there live on."""
        if self._later is not None:
            self._later.cancel()
        self._share.leave()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _look(self) -> None:
        """From now on."""
        self._count()
        self._loop.add_reader(self._sock, self._come)

    def _look_later(self, seconds: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._sock)
        self._later = self._loop.call_later(seconds, then)

    def _count(self) -> None:
        if self._sock.fileno() >= 0:
            self._share.tell(self._connections() + self._beginning)

    def _come(self) -> None:
        """Somebody knocks."""
        self._count()
        if self._share.above_others:
            self._look_later(_GIVE_WAY_S, self._insist)
        else:
            self._accept()

    def _insist(self) -> None:
        """If nobody else has taken it, it is for us."""
        self._look()
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._sock.accept()
        except OSError as error:  # another process was first, or the client has gone
            if error.errno in _EXHAUSTED:
                log.error("no connection can be accepted", error=str(error))
                self._share.leave()
                self._look_later(_PAUSE_S, self._look)
            return
        connection.setblocking(False)
        self._beginning += 1
        self._count()
        self._tasks.spawn("connect", self._connect(connection))

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=self._goodbye_s,
            )
        except OSError as error:  # a handshake that failed; ssl.SSLError is one
            log.debug("a connection ended before it began", error=str(error))
            connection.close()
        finally:
            self._beginning -= 1
            self._count()
