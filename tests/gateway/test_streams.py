"""Calls that answer piece by piece, on a real socket: events, raw bytes, function URLs, and what happens when it goes wrong."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from nova.domain.call import CallRequest
from nova.domain.identity import Scope
from nova.domain.pieces import Printed
from nova.domain.stream import Piece
from nova.domain.version import FunctionSettings, Recorded, UrlMode
from nova.errors import FunctionError, NovaError
from nova.gateway.front import Front
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.http.sse import COMMENT_INTERVAL_S
from nova.listen import Address, listening_socket
from nova.store.db import Database
from nova.store.functions import FunctionStore, announce
from tests.gateway.conftest import Gateway
from tests.gateway.fakes import FakeInvoker, Script
from tests.http.harness import security
from tests.http.sockets import RawClient
from tests.rpc.planes import until

pytestmark = pytest.mark.anyio
PNG = b"\x89PNG\r\n\x1a\n\x00\xff"
STREAM = "/functions/hello/invoke-stream"
RAW = "Accept: application/octet-stream"


def text(value: str) -> Piece:
    return Piece("text", json.dumps(value).encode())


def binary(data: bytes) -> Piece:
    return Piece("b64", b'"%s"' % base64.b64encode(data))


def gives(*items: Piece | Printed, gate: asyncio.Event | None = None) -> Script:
    """A handler that waits for ``gate`` before its last item."""

    async def script(_call: CallRequest) -> AsyncIterator[Piece | Printed]:
        for item in items[:-1]:
            yield item
        if gate is not None:
            await gate.wait()
        yield items[-1]

    return script


class Event(dict[str, str]):
    @property
    def json(self) -> Any:
        return json.loads(self["data"])


class Reader:
    """One answer, piece by piece."""

    def __init__(self, client: RawClient) -> None:
        self._in = client.reader
        self.status = 0
        self.headers: dict[str, str] = {}

    async def head(self) -> "Reader":
        raw = await asyncio.wait_for(self._in.readuntil(b"\r\n\r\n"), 10)
        first, *lines = raw[:-4].decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines)
        return self

    async def chunk(self) -> bytes:
        """The next one of the answer; empty: it is complete. IncompleteReadError: it was cut off."""
        async with asyncio.timeout(10):
            size = int(await self._in.readuntil(b"\r\n"), 16)
            return (await self._in.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        found = b""
        while piece := await self.chunk():
            found += piece
        return found

    async def events(self) -> list[Event]:
        return events_of(await self.rest())


def events_of(data: bytes) -> list[Event]:
    frames = [frame for frame in data.decode().split("\n\n") if frame and not frame.startswith(":")]
    return [Event(line.split(": ", 1) for line in frame.split("\n")) for frame in frames]


async def ask(client: RawClient, target: str, *headers: str, method: str = "POST", body: bytes = b"{}") -> Reader:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost:9000", f"Content-Length: {len(body)}", *headers]
    await client.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return await Reader(client).head()


async def function(database: Database, mode: UrlMode, name: str = "hello") -> None:
    """A function whose URL answers in this way, as the control plane writes it."""
    store = FunctionStore(database)
    settings = FunctionSettings(Recorded(url_mode=mode))
    async with database.transaction() as conn:
        known = await store.lookup(Scope(), name, conn)
        if known is None:
            await store.insert(conn, Scope(), name, settings, "test")
        else:
            await store.save(conn, known.id, settings=settings, head=1, live=None)
        await announce(conn, Scope(), name, 2)


async def test_events_come_one_by_one_while_the_handler_runs(gateway: Gateway) -> None:
    gate = asyncio.Event()
    gateway.invoker.script = gives(text("one"), Printed("stderr", "hm\n"), Piece("json", b'{"n":2}'), gate=gate)
    gateway.invoker.output = b'"over"'
    async with RawClient(gateway.port) as client:
        answer = await ask(client, f"{STREAM}?logs=1&qualifier=blue", "X-Request-ID: mine", body=b"[1]")
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
        assert (answer.headers["x-nova-executed-version"], answer.headers["x-nova-cold-start"]) == ("7", "false")
        assert answer.headers["x-client-request-id"] == "mine"
        early = b""
        while b"event: log" not in early:
            early += await answer.chunk()  # the last piece has not been given yet
        gate.set()
        events = events_of(early) + await answer.events()
        # the connection goes on
        gateway.invoker.script = gives(text("again"))
        again = await ask(client, STREAM, RAW)
        assert (again.headers["content-type"], await again.rest()) == ("application/octet-stream", b"again")
    assert [event["id"] for event in events] == ["1", "2", "3", "4", "5"]
    assert [event["event"] for event in events] == ["start", "chunk", "log", "chunk", "done"]
    start, first, log, second, done = (event.json for event in events)
    assert start == {"request_id": answer.headers["x-request-id"], "version": 7, "cold_start": False}
    assert (first, second) == ({"text": "one"}, {"json": {"n": 2}})
    assert (log["stream"], log["text"], log["time"][-1]) == ("stderr", "hm\n", "Z")
    assert (done["output"], done["duration_ms"]) == ("over", 0.412)
    assert (done["phases"]["queue_ms"], done["phases"]["handler_ms"]) == (0.005, 0.4)
    call = gateway.invoker.streamed[0]
    assert (call.payload, call.qualifier, call.trigger) == (b"[1]", "blue", "http")


async def test_prints_are_left_out_unless_they_are_asked_for(gateway: Gateway) -> None:
    gateway.invoker.script = gives(Printed("stdout", "x"), text("1"))
    async with RawClient(gateway.port) as client:
        events = await (await ask(client, STREAM)).events()
        assert [event["event"] for event in events] == ["start", "chunk", "done"]
        for query in ("logs=maybe", "tail=1"):
            assert (await client.request("POST", f"{STREAM}?{query}", b"{}")).status == 400


async def test_raw_bytes_are_what_the_handler_gave(gateway: Gateway) -> None:
    gateway.invoker.script = gives(
        text("é\ud800"), binary(PNG), Piece("json", b'{"a": [1]}'), Piece("b64", b'"\\/w=="')
    )
    async with RawClient(gateway.port) as client:
        answer = await ask(client, STREAM, RAW)
        assert (answer.headers["transfer-encoding"], answer.headers["x-nova-executed-version"]) == ("chunked", "7")
        assert await answer.rest() == "é?".encode() + PNG + b'{"a": [1]}\n' + b"\xff"


@pytest.mark.parametrize(("output", "body"), [(b'{"a":1}', b'{"a":1}\n'), (b'"text"', b"text"), (b"null", b"")])
async def test_a_handler_without_pieces_gives_what_it_returned(gateway: Gateway, output: bytes, body: bytes) -> None:
    gateway.invoker.output = output
    async with RawClient(gateway.port) as client:
        reply = await client.request("POST", STREAM, b"{}", RAW)
        assert (reply.status, reply.body) == (200, body)
        reply = await client.request("POST", STREAM, b"{}")
        start, done = events_of(reply.body)
        assert (start.json["version"], done["event"], done.json["output"]) == (7, "done", json.loads(output))
        assert reply.headers["x-nova-duration-ms"] == "0.412"


async def test_what_fails_before_the_first_piece_is_an_ordinary_refusal(gateway: Gateway) -> None:
    gateway.invoker.refusal = NovaError("queue_full", "no room", retry_after_s=3)
    async with RawClient(gateway.port) as client:
        for accept in ("Accept: */*", RAW):
            reply = await client.request("POST", STREAM, b"{}", accept)
            assert (reply.status, json.loads(reply.body)["code"], reply.headers["retry-after"]) == (
                503,
                "queue_full",
                "3",
            )
        assert (await client.request("POST", STREAM, b"{")).status == 400
        refused = await client.request("POST", STREAM, b"{}", "X-Nova-Invocation-Type: Event")
        assert json.loads(refused.body)["code"] == "validation_failed"
        assert (await client.request("GET", STREAM)).status == 405
        gateway.invoker.refusal, gateway.invoker.error = None, FunctionError("ValueError", "inner", ("line",))
        events = events_of((await client.request("POST", STREAM, b"{}")).body)
        assert [event["event"] for event in events] == ["start", "error"]
        assert events[1].json == {"type": "ValueError", "message": "inner", "stack": ["line"]}
        failed = await client.request("POST", STREAM, b"{}", RAW)
        assert (failed.status, failed.headers["x-nova-function-error"]) == (502, "ValueError")
        assert json.loads(failed.body)["error"]["message"] == "inner"
    assert (await gateway.api.remote.post(STREAM)).status_code == 401
    viewer = {"X-API-Key": await gateway.api.key("viewer")}
    assert (await gateway.api.client.post(STREAM, headers=viewer)).status_code == 403


@pytest.mark.parametrize(
    ("fault", "event"),
    [
        (FunctionError("ValueError", "late"), {"type": "ValueError", "message": "late", "stack": []}),
        (
            NovaError("timeout", "out of time"),
            {"type": "Nova.Timeout", "message": "out of time", "stack": [], "code": "timeout"},
        ),
    ],
)
async def test_what_fails_later_ends_events_with_an_error_and_cuts_bytes(
    gateway: Gateway, fault: FunctionError | NovaError, event: dict[str, Any]
) -> None:
    gate = asyncio.Event()
    gateway.invoker.script = gives(text("one"), text("two"), gate=gate)
    if isinstance(fault, NovaError):
        gateway.invoker.refusal = fault
    else:
        gateway.invoker.error = fault
    async with RawClient(gateway.port) as client:
        answer = await ask(client, STREAM)
        gate.set()
        events = await answer.events()
        assert (events[-1]["event"], events[-1].json) == ("error", event)
        gate.clear()
        cut = await ask(client, STREAM, RAW)
        assert await cut.chunk() == b"one"
        gate.set()
        with pytest.raises(asyncio.IncompleteReadError):
            await cut.rest()


async def test_a_comment_keeps_a_silent_stream_open(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMMENT_INTERVAL_S <= 15
    monkeypatch.setattr("nova.gateway.streams.COMMENT_INTERVAL_S", 0.02)
    gate = asyncio.Event()
    gateway.invoker.script = gives(text("late"), gate=gate)
    async with RawClient(gateway.port) as client:
        answer = await ask(client, STREAM)
        found = b""
        while found.count(b": still here") < 3:
            found += await answer.chunk()
        gate.set()
        events = events_of(found) + await answer.events()
    assert [(event["id"], event["event"]) for event in events] == [("1", "start"), ("2", "chunk"), ("3", "done")]


async def test_a_client_that_leaves_ends_the_call(gateway: Gateway) -> None:
    gateway.invoker.script = gives(text("one"), text("two"), gate=asyncio.Event())
    async with RawClient(gateway.port) as client:
        await (await ask(client, STREAM)).chunk()
    await asyncio.wait_for(gateway.invoker.cancelled.wait(), 20)
    gateway.invoker.cancelled.clear()
    gateway.invoker.script = gives(text("one"), gate=asyncio.Event())  # nothing has been answered yet
    async with RawClient(gateway.port) as client:
        await client.send(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n" % STREAM.encode())
        await until(lambda: len(gateway.invoker.streamed) == 2)
    await asyncio.wait_for(gateway.invoker.cancelled.wait(), 20)


async def test_a_slow_client_slows_the_handler_and_gets_everything(gateway: Gateway) -> None:
    """Function streams never drop: back-pressure reaches whoever gives the pieces."""
    piece, total = "x" * (64 << 10), 400

    async def script(_call: CallRequest) -> AsyncIterator[Piece | Printed]:
        for _ in range(total):
            yield text(piece)

    gateway.invoker.script = script
    async with small_window(gateway.port) as client:
        answer = await ask(client, STREAM, RAW)
        given = 0
        while given != gateway.invoker.given or not given:  # until everything on the way is full
            given = gateway.invoker.given
            await asyncio.sleep(0.2)
        assert given < total / 2
        size = 0
        while chunk := await answer.chunk():
            size += len(chunk)
        assert size == total * len(piece)
        assert gateway.invoker.given == total


def small_window(port: int) -> RawClient:
    """A client whose socket takes little ahead."""

    class Small(RawClient):
        async def __aenter__(self) -> "Small":
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=16 << 10)
            return self

    return Small(port)


async def test_old_clients_get_the_bytes_until_the_connection_closes(gateway: Gateway) -> None:
    gateway.invoker.script = gives(text("one"), text("two"))
    async with RawClient(gateway.port) as client:
        await client.send(
            b"POST %s HTTP/1.0\r\nHost: localhost\r\nAccept: application/octet-stream\r\n\r\n" % STREAM.encode()
        )
        raw = await asyncio.wait_for(client.reader.read(), 10)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert body == b"onetwo"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head


async def test_requests_behind_a_stream_wait_for_its_end(gateway: Gateway) -> None:
    gate = asyncio.Event()
    gateway.invoker.script = gives(text("one"), text("two"), gate=gate)
    async with RawClient(gateway.port) as client:
        answer = await ask(client, STREAM, RAW)
        await client.send(b"POST /functions/hello/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n7")
        gate.set()
        assert await answer.rest() == b"onetwo"
        assert json.loads((await client.reply()).body)["output"] == 7


async def test_a_url_that_streams_gives_its_head_with_the_first_piece(gateway: Gateway, database: Database) -> None:
    await function(database, "stream")
    gate = asyncio.Event()
    head = {"statusCode": 201, "headers": {"X-N": 1, "Content-Length": "9"}, "cookies": ["a=b"]}
    gateway.invoker.script = gives(Piece("json", json.dumps(head).encode()), binary(PNG), text("é"), gate=gate)
    async with RawClient(gateway.port) as client:
        answer = await ask(client, "/fn/hello/a?b=c", "Content-Type: image/png", body=PNG)
        assert (answer.status, answer.headers["x-n"], answer.headers["set-cookie"]) == (201, "1", "a=b")
        assert (answer.headers["content-type"], answer.headers["transfer-encoding"]) == (
            "application/octet-stream",
            "chunked",
        )
        assert "content-length" not in answer.headers
        assert await answer.chunk() == PNG
        gate.set()
        assert await answer.rest() == "é".encode()
        head_only = await client.request("HEAD", "/fn/hello")
        assert (head_only.status, head_only.body) == (201, b"")
        assert (await client.request("GET", "/fn/hello")).body == PNG + "é".encode()
    call = gateway.invoker.streamed[0]
    event = json.loads(call.payload)
    assert (call.trigger, event["rawPath"], event["isBase64Encoded"]) == ("url", "/a", True)
    assert base64.b64decode(event["body"]) == PNG


@pytest.mark.parametrize(
    ("items", "kind", "body"),
    [
        ([text("a"), text("b")], "text/plain; charset=utf-8", b"ab"),
        ([Piece("json", b'{"a":1}'), Piece("json", b"2")], "application/x-ndjson", b'{"a":1}\n2\n'),
        ([binary(PNG)], "application/octet-stream", PNG),
        (
            [Piece("json", b'{"statusCode":200,"headers":{"content-type":"text/csv"},"body":"x,"}'), text("y")],
            "text/csv",
            b"x,y",
        ),
        ([Piece("json", b'{"statusCode":204}'), text("nothing")], None, b""),
    ],
)
async def test_the_first_piece_says_what_a_streamed_url_answers(
    gateway: Gateway, database: Database, items: list[Piece], kind: str | None, body: bytes
) -> None:
    await function(database, "stream")
    gateway.invoker.script = gives(*items)
    async with RawClient(gateway.port) as client:
        reply = await client.request("GET", "/fn/hello")
        assert reply.body == body
        if kind is not None:
            assert (reply.status, reply.headers["content-type"]) == (200, kind)
        assert (await client.request("GET", "/fn/hello")).body == body


async def test_a_streamed_url_that_fails_or_does_not_stream(gateway: Gateway, database: Database) -> None:
    await function(database, "stream")
    async with RawClient(gateway.port) as client:
        gateway.invoker.output = json.dumps(
            {"statusCode": 202, "body": base64.b64encode(PNG).decode(), "isBase64Encoded": True}
        ).encode()
        whole = await client.request("GET", "/fn/hello")
        assert (whole.status, whole.body, whole.headers["content-length"]) == (202, PNG, str(len(PNG)))
        for first in (b'{"statusCode":7}', b'{"statusCode":200,"headers":{"x":"a\\nb"}}'):
            gateway.invoker.script = gives(Piece("json", first))
            refused = await client.request("GET", "/fn/hello")
            assert (refused.status, json.loads(refused.body)["code"]) == (502, "invalid_response")
        gateway.invoker.script = None
        gateway.invoker.error = FunctionError("ValueError", "inner")
        failed = await client.request("GET", "/fn/hello")
        assert (failed.status, json.loads(failed.body)["code"]) == (502, "function_error")
        gateway.invoker.script = gives(text("some"))
        cut = await ask(client, "/fn/hello", method="GET")
        assert cut.status == 200
        with pytest.raises(asyncio.IncompleteReadError):
            await cut.rest()


async def test_the_mode_of_a_url_counts_as_soon_as_it_is_changed(gateway: Gateway, database: Database) -> None:
    gateway.invoker.output = b"1"
    await function(database, "buffered")
    async with RawClient(gateway.port) as client:
        await client.request("GET", "/fn/hello")
        assert not gateway.invoker.streamed
        await function(database, "stream")
        async with asyncio.timeout(20):
            while not gateway.invoker.streamed:
                await client.request("GET", "/fn/hello")
        await client.request("GET", "/fn/unknown")
        assert len(gateway.invoker.streamed) == 1


async def test_a_server_that_ends_lets_streams_end_first(database: Database) -> None:
    """A function's stream has an end, unlike a feed of events: it gets the time that any call gets, and then is cut off."""
    invoker, gate = FakeInvoker(), asyncio.Event()
    async with security(database) as guards:
        front = Front(invoker, guards.door, guards.audit, PlainTextResponse(""), limits=guards.settings.limits)
        for drain_s in (20, 0.1):
            gate.clear()
            invoker.script = gives(text("one"), text("two"), gate=gate)
            sock = listening_socket(Address("127.0.0.1", 0))
            server = HttpServer(front, [sock], limits=ConnectionLimits(), drain_s=drain_s)
            await server.start()
            async with RawClient(sock.getsockname()[1]) as client:
                answer = await ask(client, STREAM)
                closing = asyncio.create_task(server.close())
                await until(lambda server=server: server.draining)
                if drain_s > 1:
                    gate.set()
                    events = await answer.events()
                    assert [event["event"] for event in events] == ["start", "chunk", "chunk", "done"]
                else:
                    with pytest.raises(asyncio.IncompleteReadError):
                        await answer.rest()
                    await asyncio.wait_for(invoker.cancelled.wait(), 20)
            await asyncio.wait_for(closing, 10)
