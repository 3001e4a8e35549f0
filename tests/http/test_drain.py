"""A server that ends: whoever talks to it gets an answer, whoever might be about to talk gets the time to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import pytest

from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.listen import Address, listening_socket
from tests.http.sockets import RawClient

pytestmark = pytest.mark.anyio


@dataclass
class App:
    began: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/begun":  # the head, which says nothing of closing, is out before the server ends
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        if scope["path"] in ("/begun", "/wait"):
            self.began.set()
            await self.gate.wait()
        if scope["path"] != "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"last"})


@asynccontextmanager
async def _server(app: App, *, idle_grace_s: float = 10, drain_s: float = 20) -> AsyncIterator[tuple[HttpServer, int]]:
    sock = listening_socket(Address("127.0.0.1", 0))
    server = HttpServer(app, [sock], limits=ConnectionLimits(), drain_s=drain_s, idle_grace_s=idle_grace_s)
    await server.start()
    try:
        yield server, sock.getsockname()[1]
    finally:
        await server.close()


async def _closing(server: HttpServer) -> "asyncio.Task[None]":
    closing = asyncio.create_task(server.close())
    while not server.draining:
        await asyncio.sleep(0)
    return closing


async def test_a_request_on_a_free_connection_is_answered_and_told_to_close() -> None:
    """Zero downtime: a client that was about to send does not find its connection closed."""
    async with (
        _server(App(), idle_grace_s=60, drain_s=60) as (server, port),
        RawClient(port) as one,
        RawClient(port) as other,
    ):
        assert "connection" not in (await one.request("GET", "/")).headers
        assert "connection" not in (await other.request("GET", "/")).headers
        closing = await _closing(server)
        for client in (one, other):
            reply = await client.request("GET", "/")  # the very same head again
            assert (reply.status, reply.body, reply.headers["connection"]) == (200, b"last", "close")
            assert await client.closed()
        async with asyncio.timeout(20):  # nobody is left: it does not wait for the grace
            await closing
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)


async def test_a_request_that_is_being_sent_is_answered() -> None:
    async with _server(App()) as (server, port), RawClient(port) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: ")
        while not server.connections:
            await asyncio.sleep(0.01)
        closing = await _closing(server)
        await client.send(b"localhost\r\n\r\n")
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await closing


async def test_an_answer_that_did_not_say_close_leaves_the_connection_open() -> None:
    """Its client may send the next request as soon as it has the answer."""
    app = App()
    async with _server(app) as (server, port), RawClient(port) as client:
        await client.send(b"GET /begun HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await client.reader.readuntil(b"first\r\n")
        closing = await _closing(server)
        app.gate.set()
        assert await client.reader.readexactly(14) == b"4\r\nlast\r\n0\r\n\r\n"
        reply = await client.request("GET", "/")
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await closing


async def test_free_connections_are_closed_after_the_grace_and_work_is_waited_for() -> None:
    app = App()
    async with _server(app, idle_grace_s=0.2) as (server, port), RawClient(port) as idle, RawClient(port) as busy:
        await idle.request("GET", "/")
        await busy.send(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await app.began.wait()
        began = perf_counter()
        closing = await _closing(server)
        assert await idle.closed()
        assert perf_counter() - began >= 0.15
        assert not closing.done()
        app.gate.set()
        assert (await busy.reply()).headers["connection"] == "close"
        await closing


async def test_a_connection_that_never_sends_delays_the_end_by_the_grace_only() -> None:
    async with _server(App(), idle_grace_s=0.1) as (server, port), RawClient(port) as silent, RawClient(port) as half:
        await half.send(b"GET / HTTP/1.1\r\nHost: ")
        while server.connections < 2:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            await server.close()
        assert await silent.closed()
        assert await half.closed()
