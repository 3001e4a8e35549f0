"""The HTTP server as a service: sockets that somebody opened, one application, a graceful end."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from email.utils import formatdate
from typing import cast

import structlog
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from nova.http.accepting import Turnstile
from nova.http.protocol import ConnectionLimits, Protocol, factory
from nova.http.shares import Share

log = structlog.get_logger(__name__)
IDLE_GRACE_S = 1.0
"""Longer than our own proxies keep a free connection (:mod:`nova.http.proxy`), so they never use one that is being closed."""
_BACKLOG = 2048
_LOOK_S = 0.01
_GOODBYE_S = 2.0
"""How long a client may take to end a TLS connection that we end."""


class HttpServer:
    """Serves ``app`` on sockets that listen already (:mod:`nova.listen`); it owns them from :meth:`start` on.

    With ``tls`` it speaks HTTPS. :meth:`close` stops listening and gives what is under way ``drain_s`` seconds: answers in
    work are finished; a request that comes on a connection kept alive is answered too, and told to close; connections
    without a request are closed after ``idle_grace_s``, because their client may be about to send. The rest is cut off.
    """

    def __init__(
        self,
        app: ASGIApp,
        sockets: Sequence[socket.socket],
        *,
        limits: ConnectionLimits,
        drain_s: float,
        idle_grace_s: float = IDLE_GRACE_S,
        tls: ssl.SSLContext | None = None,
        share: Share | None = None,
    ) -> None:
        """``share``: this one's, where other processes accept on the same sockets."""
        self._share = share
        self._sockets = list(sockets)
        self._drain_s = drain_s
        self._idle_grace_s = min(idle_grace_s, drain_s)
        self._tls = tls
        self.draining = False
        """True from the start of :meth:`close` on, for probes; requests are still answered."""
        self._limits = limits
        self._config = Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=int(limits.keep_alive_s),
        )
        self._state = ServerState()
        self._servers: list[asyncio.Server | Turnstile] = []
        self._clock: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        return len(self._state.connections)

    async def start(self) -> None:
        self._config.load()
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        loop = asyncio.get_running_loop()
        self._tick()
        make = factory(self._config, self._state, loop, self._limits)
        handshake_s, goodbye_s = (None, None) if self._tls is None else (self._limits.header_timeout_s, _GOODBYE_S)
        for sock in self._sockets:
            if self._share is not None:
                turnstile = Turnstile(
                    sock,
                    make,
                    self._share,
                    lambda: self.connections,
                    tls=self._tls,
                    handshake_s=handshake_s,
                    goodbye_s=goodbye_s,
                )
                self._servers.append(turnstile)
                continue
            server = await loop.create_server(
                make,
                sock=sock,
                backlog=_BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=goodbye_s,
            )
            self._servers.append(server)

    async def close(self) -> None:
        self.draining = True
        for server in self._servers:
            server.close()
        if not await self._drained():
            log.warning("requests cut off at shutdown", requests=len(self._state.tasks))
            for task in list(self._state.tasks):
                task.cancel()
            await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.close()
        for server in self._servers:
            if isinstance(server, Turnstile):
                await server.wait_closed()
        if self._clock is not None:
            self._clock.cancel()

    async def _drained(self) -> bool:
        """Wait for every request in work, and until every connection is closed; False when requests are left in the end."""
        now = asyncio.get_running_loop().time
        began, waited = now(), 0.0
        while waited < self._drain_s:
            for connection in cast("list[Protocol]", list(self._state.connections)):
                connection.shutdown()  # each time: a TLS handshake that was under way makes a connection late
                if waited >= self._idle_grace_s:
                    connection.end_if_idle()
            handshakes = (
                self._tls is not None and waited < self._idle_grace_s
            )  # they are not counted as connections yet
            if not self._state.tasks and not self._state.connections and not handshakes:
                break
            await asyncio.sleep(_LOOK_S)
            waited = now() - began
        return not self._state.tasks

    def _tick(self) -> None:
        """The Date header, once per second."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = asyncio.get_running_loop().call_later(1, self._tick)
