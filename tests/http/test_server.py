"""The wire: limits, slow and leaving clients, one write per answer, a graceful end."""

import asyncio
import json
from typing import Any

import pytest

from nova.api.table import Empty, Plane, Route
from nova.http.body import ClientGone, read
from nova.http.cycle import wire_of
from nova.http.handler import Req, handles
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.http.sse import Event, stream
from nova.listen import Address, listening_socket
from nova.store.db import Database
from tests.http.harness import management, serve
from tests.http.sockets import RawClient

pytestmark = pytest.mark.anyio
MB = 1 << 20


class Echo:
    """Answers with what it was asked, reads bodies up to 1 MiB, and can wait for an event."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.gate = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        headers = dict(scope["headers"])
        if path == "/stream":
            await stream(self._events(), receive, send, [])
            return
        if path == "/wait":
            wire = wire_of(scope)
            assert wire is not None
            wire.cancel_with_client(True)
            self.began.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.gone.set()
                raise
        if path == "/refuse":
            await self._send(send, 413, b"no")
            return
        try:
            body = await read(receive, headers.get(b"content-length"), MB)
        except ClientGone:
            self.gone.set()
            return
        answer = {"method": scope["method"], "path": scope["raw_path"].decode(), "size": len(body)}
        await self._send(send, 200, json.dumps(answer).encode())

    async def _send(self, send: Any, status: int, body: bytes) -> None:
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    async def _events(self) -> Any:
        try:
            for number in range(3):
                yield Event({"n": number}, event="tick", id=str(number))
            self.began.set()
            await self.gate.wait()
        finally:
            self.gone.set()


@pytest.fixture
def echo() -> Echo:
    return Echo()


async def test_an_answer_is_one_write(echo: Echo) -> None:
    """Two writes wake a client twice: head and body leave together."""
    async with serve(echo) as port, RawClient(port) as client:
        await client.request("GET", "/first")
        await client.send(b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n")
        data = await client.reader.read(65536)
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert data.endswith(b"}")


async def test_keep_alive_pipelining_and_head(echo: Echo) -> None:
    async with serve(echo) as port, RawClient(port) as client:
        one = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
        await client.send(one + one.replace(b"/a", b"/b") + one.replace(b"/a", b"/c"))
        assert [json.loads((await client.reply()).body)["path"] for _ in range(3)] == ["/a", "/b", "/c"]
        head = await client.request("HEAD", "/d")
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        assert (await client.request("GET", "/e")).status == 200


async def test_chunked_bodies_arrive_whole(echo: Echo) -> None:
    """EX12: a body without Content-Length reaches the application whole."""
    async with serve(echo) as port, RawClient(port) as client:
        await client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10):
            await client.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        await client.send(b"0\r\n\r\n")
        assert json.loads((await client.reply()).body)["size"] == 10 * 0x8000


async def test_an_answer_before_the_whole_body_reaches_the_client_and_closes(echo: Echo) -> None:
    """EX12: a refused body is not read on, and its rest is not taken for another request."""
    async with serve(echo) as port, RawClient(port) as client:
        await client.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1_000_000)
        reply = await client.reply()
        assert reply.status == 413
        assert reply.headers["connection"] == "close"
        try:
            await client.send(b"GET /smuggled HTTP/1.1\r\n\r\n" + b"x" * 1_999_000)
        except ConnectionError:
            pass  # closed already, which is as good
        assert await client.closed()


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /" + b"u" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"h" * 70_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 12_000 + b"\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"h" * 90_000, 431, "headers_too_large"),
        (b"GET /" + b"u" * 90_000, 414, "uri_too_long"),
        (b"FLY / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "validation_failed"),
        (b"GET / HTTP/1.1\r\nBad Header\r\n\r\n", 400, "validation_failed"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400, "validation_failed"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "validation_failed"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "validation_failed"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "validation_failed"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "validation_failed"),
    ],
)
async def test_what_is_no_acceptable_request_is_a_problem(
    echo: Echo, request_bytes: bytes, status: int, code: str
) -> None:
    """GW1, AP4: odd requests are refused as problem documents, and the server goes on."""
    async with serve(echo) as port:
        async with RawClient(port) as client:
            await client.send(request_bytes)
            reply = await client.reply()
            assert reply.status == status
            assert reply.headers["content-type"] == "application/problem+json"
            assert json.loads(reply.body)["code"] == code
            assert json.loads(reply.body)["request_id"] == reply.headers["x-request-id"]
            assert await client.closed()
        async with RawClient(port) as client:
            assert (await client.request("GET", "/")).status == 200


async def test_an_offer_to_upgrade_does_not_lose_the_body(echo: Echo) -> None:
    """Java's and curl's clients offer HTTP/2 on every request."""
    async with serve(echo) as port, RawClient(port) as client:
        for _ in range(2):
            await client.send(
                b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Length: 5\r\n\r\nhel"
            )
            await client.send(b"lo")
            reply = await client.reply()
            assert (reply.status, json.loads(reply.body)["size"]) == (200, 5)


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n",
    ],
)
async def test_a_client_that_drips_is_cut_off_and_delays_nobody(echo: Echo, start: bytes) -> None:
    """GW10: neither headers nor a body may come byte by byte."""
    limits = ConnectionLimits(header_timeout_s=0.3)
    async with serve(echo, limits) as port, RawClient(port) as slow:
        await slow.send(start)

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.05)
                slow.writer.write(b"a")

        dripping = asyncio.create_task(drip())
        async with RawClient(port) as other:
            assert (await other.request("GET", "/")).status == 200
        reply = await slow.reply()
        dripping.cancel()
        assert (reply.status, json.loads(reply.body)["code"]) == (408, "request_timeout")
        assert await slow.closed()


async def test_a_silent_connection_is_closed(echo: Echo) -> None:
    async with serve(echo, ConnectionLimits(header_timeout_s=0.1)) as port, RawClient(port) as client:
        assert await client.closed()


async def test_an_idle_connection_is_closed_after_its_keep_alive(echo: Echo) -> None:
    async with serve(echo, ConnectionLimits(keep_alive_s=1)) as port, RawClient(port) as client:
        for _ in range(3):
            assert (await client.request("GET", "/")).status == 200
        assert await client.closed()


async def test_a_large_body_on_a_slow_reader_is_no_slow_client(echo: Echo) -> None:
    """Bytes that wait for us do not count against the client."""
    async with serve(echo, ConnectionLimits(header_timeout_s=0.2)) as port, RawClient(port) as client:
        wait = asyncio.create_task(client.request("POST", "/wait", b"x" * MB))
        await echo.began.wait()
        await asyncio.sleep(0.5)  # longer than the time-out, with the body unread
        echo.gate.set()
        assert json.loads((await wait).body)["size"] == MB


async def test_one_connection_too_many_is_503(echo: Echo) -> None:
    async with serve(echo, ConnectionLimits(max_connections=2)) as port:
        async with RawClient(port) as one, RawClient(port) as two:
            assert (await one.request("GET", "/")).status == 200
            assert (await two.request("GET", "/")).status == 200
            async with RawClient(port) as three:
                reply = await three.reply()
                assert (reply.status, json.loads(reply.body)["code"]) == (503, "capacity")
                assert reply.headers["retry-after"] == "1"
        async with RawClient(port) as later:
            assert (await later.request("GET", "/")).status == 200


async def test_a_client_that_leaves_cancels_its_work(echo: Echo) -> None:
    """EX7: no task waits for somebody who is gone."""
    async with serve(echo) as port:
        async with RawClient(port) as client:
            await client.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            await echo.began.wait()
        async with asyncio.timeout(20):
            await echo.gone.wait()


async def test_a_client_that_leaves_in_its_body_is_noticed(echo: Echo) -> None:
    async with serve(echo) as port:
        async with RawClient(port) as client:
            await client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            await client.writer.drain()
        async with asyncio.timeout(20):
            await echo.gone.wait()


async def test_a_stream_begins_before_it_ends_and_ends_with_its_reader(echo: Echo) -> None:
    """GW4: the first event is there while the producer still runs; a reader that leaves stops it."""
    async with serve(echo) as port:
        async with RawClient(port) as client:
            await client.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"content-type: text/event-stream" in head
            text = b""
            while b'{"n":2}' not in text:
                text += await client.reader.read(4096)
            assert b'id: 0\nevent: tick\ndata: {"n":0}\n\n' in text
            assert not echo.gone.is_set()
        async with asyncio.timeout(20):
            await echo.gone.wait()


async def test_closing_lets_answers_finish_and_cuts_streams(echo: Echo) -> None:
    sock = listening_socket(Address("127.0.0.1", 0))
    port = sock.getsockname()[1]
    server = HttpServer(echo, [sock], limits=ConnectionLimits(), drain_s=20)
    await server.start()
    async with RawClient(port) as idle, RawClient(port) as busy, RawClient(port) as streaming:
        await idle.request("GET", "/")
        await streaming.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await streaming.reader.readuntil(b'{"n":2}')
        await echo.began.wait()
        echo.began.clear()
        await busy.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await echo.began.wait()
        closing = asyncio.create_task(server.close())
        assert await idle.closed()
        async with asyncio.timeout(20):
            await echo.gone.wait()  # the stream's producer was stopped
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        echo.gate.set()
        reply = await busy.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        await closing


async def test_closing_cuts_what_does_not_end_in_time(echo: Echo) -> None:
    async with serve(echo, drain_s=0.1) as port:
        client = await RawClient(port).__aenter__()
        await client.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await echo.began.wait()
    assert await client.closed()
    assert echo.gone.is_set()
    await client.__aexit__()


async def test_a_client_that_does_not_read_is_cut_off() -> None:
    """GW4: an answer that nobody takes does not stay in memory."""
    finished = asyncio.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        piece = b"x" * MB
        while (wire := wire_of(scope)) is not None and not wire.disconnected:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        finished.set()

    async with serve(flood, ConnectionLimits(stall_timeout_s=0.2)) as port, RawClient(port) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            await finished.wait()


async def test_an_idle_stream_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment goes out while there is no event."""
    monkeypatch.setattr("nova.http.sse.COMMENT_INTERVAL_S", 0.05)

    async def silent() -> Any:
        await asyncio.Event().wait()
        yield Event({})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await stream(silent(), receive, send, [])

    async with serve(app) as port, RawClient(port) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            await client.reader.readuntil(b": still here\n\n")


async def test_paths_of_every_spelling_leave_the_server_alive(database: Database) -> None:
    """GW1: what a path may look like on the wire, through the whole management application."""

    class Reader:
        @handles("one")
        async def one(self, req: Req[Empty, Empty]) -> dict[str, str]:
            return dict(req.params)

    table = [Route("one", "GET", "/functions/{name}", "", Plane.CONTROL, "function:read")]
    expected = {
        "/functions/a%20b": 200,
        "/functions/a%2Fb": 200,
        "/functions/a%3Fb": 200,
        "/functions/a%0d%0aSet-Cookie:%20x=1": 400,
        "/functions/%": 400,
        "/functions/%2": 400,
        "/functions/%zz": 400,
        "/functions/%c3%28": 400,
        "/functions/../functions/a": 404,
        "/functions/./a": 404,
        "/functions//a": 404,
        "/functions/a;b": 200,
        "/functions/a?b=c": 400,
        "/functions/a?%": 400,
        "/functions/a#b": 200,
        "http://localhost:9000/functions/a": 200,
        "*": 404,
    }
    async with management(database, [Reader()], table) as api, serve(api.app) as port:
        for target, status in expected.items():
            async with RawClient(port) as client:
                reply = await client.request("GET", target, b"", "X-Request-ID: a", "X-Request-ID: b")
                assert reply.status == status, target
                assert "set-cookie" not in reply.headers
