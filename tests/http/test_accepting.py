"""Servers that share a socket share its connections, and neither loses one."""

import asyncio
import errno
import socket
from typing import Any

import pytest

from nova.http import accepting
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.http.shares import Share, Shares
from nova.listen import Address, listening_socket
from tests.http.sockets import RawClient

pytestmark = pytest.mark.anyio
CLIENTS = 40


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def _server(sock: socket.socket, share: Share) -> HttpServer:
    return HttpServer(_app, [sock], limits=ConnectionLimits(), drain_s=5, idle_grace_s=0.1, share=share)


async def test_a_crowd_is_divided() -> None:
    sock = listening_socket(Address("127.0.0.1", 0))
    port = sock.getsockname()[1]
    shares = Shares(2)
    servers = [_server(sock.dup(), shares.of(0)), _server(sock, shares.of(1))]
    for server in servers:
        await server.start()
    clients = [RawClient(port) for _ in range(CLIENTS)]
    await asyncio.gather(*(client.__aenter__() for client in clients))
    for client in clients:
        assert (await client.request("GET", "/")).status == 200
    assert sum(server.connections for server in servers) == CLIENTS
    assert min(server.connections for server in servers) >= CLIENTS // 2 - 2
    first, second = servers
    await first.close()
    async with RawClient(port) as late:  # what one no longer takes, the other does
        assert (await late.request("GET", "/")).status == 200
    await second.close()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", port)
    for client in clients:
        await client.__aexit__()


async def test_who_has_more_gives_way_and_who_is_alone_does_not() -> None:
    """A process that stands still, with fewer connections, keeps nobody waiting."""
    sock = listening_socket(Address("127.0.0.1", 0))
    shares = Shares(3)
    still = shares.of(1)
    still.tell(0)
    server = _server(sock, shares.of(0))
    await server.start()
    async with RawClient(sock.getsockname()[1]) as one, RawClient(sock.getsockname()[1]) as other:
        for client in (one, other, one):
            assert (await client.request("GET", "/")).status == 200
        assert shares.of(0).above_others
        still.leave()
        assert not shares.of(0).above_others
    await server.close()


class Exhausted(socket.socket):
    """No descriptor is left, ``times`` times."""

    times = 1

    def accept(self) -> Any:
        if Exhausted.times:
            Exhausted.times -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_descriptors_connections_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_PAUSE_S", 0.05)
    sock = Exhausted(fileno=listening_socket(Address("127.0.0.1", 0)).detach())
    server = _server(sock, Shares(1).of(0))
    await server.start()
    async with RawClient(sock.getsockname()[1]) as client:
        assert (await client.request("GET", "/")).status == 200
    assert Exhausted.times == 0
    await server.close()
