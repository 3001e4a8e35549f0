"""The HTTP side of a process: its sockets, its limits, its server, and how it hands them to a successor."""

import socket
from collections.abc import Sequence

from starlette.types import ASGIApp

from nova.app.process import Process
from nova.handover import Inheritance, Offer, offer_path, take_over
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.http.shares import Share
from nova.http.tls import tls_context
from nova.listen import Address, activated, listening_socket


class HttpSide:
    """Opened first, so that a taken port is noticed before anything else is done; serving begins last.

    The sockets are those that a service manager opened, those of the predecessor that ``inherit`` asks to hand over, those
    ``given`` by a supervisor, or new ones. Raises OSError, or NovaError for a certificate that cannot be used.
    """

    def __init__(
        self,
        process: Process,
        plane: str,
        address: Address,
        *,
        public: bool,
        inherit: bool = False,
        given: Sequence[socket.socket] = (),
        share: Share | None = None,
    ) -> None:
        """``public``: clients speak to it, so it has the operator's certificate. ``share``: this process's in the connections
        of sockets ``given`` to several."""
        self._process = process
        settings = process.settings
        self._tls = tls_context(settings.http) if public else None
        self._share = share
        self._server: HttpServer | None = None
        self._path = offer_path(settings.data_dir, plane, address.port)
        self._inheritance: Inheritance | None = None
        self.sockets = list(given) or activated()
        if not self.sockets and inherit:
            self._inheritance = take_over(self._path)
            if self._inheritance is not None:
                self.sockets = self._inheritance.sockets
        if not self.sockets:
            self.sockets = [listening_socket(address)]
        process.services.callback(self._close)
        host, port = self.sockets[0].getsockname()[:2]
        self.address = Address(host, port)
        self.url = f"{'https' if self._tls else 'http'}://{self.address.shown}"

    @property
    def draining(self) -> bool:
        """True while the server answers what is left of it."""
        return self._server is not None and self._server.draining

    async def serve(self, app: ASGIApp, *, hand_over: bool) -> None:
        """Answer requests from now on. ``hand_over``: offer the sockets to a successor, and leave when it serves."""
        process, http = self._process, self._process.settings.http
        limits = ConnectionLimits(max_connections=http.max_connections, header_timeout_s=http.header_timeout)
        drain_s = process.settings.daemon.drain_s
        self._server = HttpServer(app, self.sockets, limits=limits, drain_s=drain_s, tls=self._tls, share=self._share)
        await process.services.start(self._server)
        if hand_over:
            await process.services.start(Offer(self._path, self.sockets, process.leave))
        if self._inheritance is not None:
            self._inheritance.ready()

    def _close(self) -> None:
        if self._inheritance is not None:
            self._inheritance.close()
        for sock in self.sockets:
            sock.close()
