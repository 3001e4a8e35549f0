"""The HTTP server as a service: sockets that somebody opened, one application, a graceful end."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from email.utils import formatdate

import structlog
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from nova.http.protocol import ConnectionLimits, factory

log = structlog.get_logger(__name__)
_BACKLOG = 2048


class HttpServer:
    """Serves ``app`` on sockets that listen already (:mod:`nova.listen`); it owns them from :meth:`start` on.

    :meth:`close` stops listening, lets answers in work finish for ``drain_s`` seconds, cancels the rest and returns.
    """

    def __init__(
        self, app: ASGIApp, sockets: Sequence[socket.socket], *, limits: ConnectionLimits, drain_s: float
    ) -> None:
        self._sockets = list(sockets)
        self._drain_s = drain_s
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
        self._servers: list[asyncio.Server] = []
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
        for sock in self._sockets:
            self._servers.append(await loop.create_server(make, sock=sock, backlog=_BACKLOG))

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self._drain_s):
                await self._idle()
        except TimeoutError:
            log.warning("requests cut off at shutdown", requests=len(self._state.tasks))
            for task in list(self._state.tasks):
                task.cancel()
            await asyncio.gather(*self._state.tasks, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.close()
        if self._clock is not None:
            self._clock.cancel()

    async def _idle(self) -> None:
        """Return when no request is in work any more."""
        while self._state.tasks:
            await asyncio.wait(list(self._state.tasks))
            await asyncio.sleep(0)

    def _tick(self) -> None:
        """The Date header, once per second."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._clock = asyncio.get_running_loop().call_later(1, self._tick)
