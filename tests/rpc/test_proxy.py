"""HTTP through a gRPC stream: the bytes that came in come out, nothing is held back, each end hears of the other's end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nova.domain.identity import Scope as Place
from nova.errors import NovaError
from nova.http.exchange import REQUEST_ID
from nova.rpc import bridge
from nova.rpc import nova_pb2 as pb
from nova.rpc.remote import CometConnection
from nova.security.assertion import ADMITTED
from nova.security.guards import Caller
from tests.gateway.fakes import FakeInvoker
from tests.http.harness import serve
from tests.rpc.planes import ALICE, ASSERTIONS, TOKEN, connected, metadata, raw, server_of, serving, until

pytestmark = pytest.mark.anyio


class Application:
    """What stands behind the other end: remembers what it was asked, answers what the test says."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = [(b"content-type", b"text/plain")]
        self.pieces: list[bytes] = [b"hello"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = b""
        while True:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def request(
    method: str = "GET",
    raw_path: bytes = b"/x",
    query: bytes = b"",
    headers: list[tuple[bytes, bytes]] | None = None,
    **more: Any,
) -> Scope:
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": raw_path.decode("latin-1"),
        "raw_path": raw_path,
        "query_string": query,
        "headers": headers or [],
        "client": ("203.0.113.1", 5),
        ADMITTED: (Caller(ALICE, "203.0.113.1"), Place()),
        **more,
    }


class Client:
    """ASGI's receive and send of somebody who asks, driven by hand."""

    def __init__(self, *pieces: bytes) -> None:
        self.requests: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: list[Message] = []
        self.came = asyncio.Event()
        for number, piece in enumerate(pieces or (b"",), 1):
            self.give(piece, more=number < len(pieces))

    def give(self, body: bytes, *, more: bool) -> None:
        self.requests.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self.requests.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        return await self.requests.get()

    async def send(self, message: Message) -> None:
        self.answers.append(message)
        self.came.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.answers)

    @property
    def status(self) -> int:
        status: int = self.answers[0]["status"]
        return status


@asynccontextmanager
async def proxied(app: ASGIApp, **values: Any) -> AsyncIterator[CometConnection]:
    async with serving(invoker=FakeInvoker(), application=app, **values) as server, connected(server.port) as comet:
        yield comet


async def test_a_request_and_its_answer_pass_unchanged() -> None:
    app = Application()
    app.status, app.pieces = 207, [b"a", b"b" * 700_000]
    app.headers = [(b"x-one", b"1"), (b"x-one", b"2"), (b"x-latin", b"\xe9")]
    path, query = b"/a%2Fb/%E4%zz;x=1/%0d%0aX-Evil:%201", b"q=%26&a=1&a=2&%ff"
    async with proxied(app) as comet:
        client = Client(b"12", b"34" * 400_000)
        headers = [(b"host", b"front.example"), (b"x-many", b"1"), (b"x-many", b"2"), (b"content-length", b"800002")]
        await comet.proxy(request("PUT", path, query, headers), client.receive, client.send)
    scope = app.scopes[0]
    assert (scope["method"], scope["raw_path"], scope["query_string"]) == ("PUT", path, query)
    assert scope["headers"][:4] == headers
    assert scope["client"][0] == "203.0.113.1"
    assert app.bodies == [b"12" + b"34" * 400_000]
    assert client.status == 207
    assert client.answers[0]["headers"] == app.headers
    assert client.body == b"a" + b"b" * 700_000
    assert client.answers[-1]["more_body"] is False


async def test_the_door_says_who_asks_not_the_request() -> None:
    app = Application()
    forged = [
        (b"X-Nova-Identity", b"forged"),
        (b"authorization", b"Bearer forged"),
        (b"x-api-key", b"nk_secret"),
        (b"connection", b"upgrade"),
        (b"transfer-encoding", b"chunked"),
        (b"x-kept", b"yes"),
    ]
    async with proxied(app) as comet:
        client = Client()
        await comet.proxy(request(headers=forged, **{REQUEST_ID: "r-1"}), client.receive, client.send)
        unsigned = request(headers=[(b"x-nova-identity", b"signed-elsewhere")])
        del unsigned[ADMITTED]
        with pytest.raises(NovaError) as caught:
            await comet.proxy(unsigned, Client().receive, client.send)
        assert caught.value.code == "unauthenticated"
    headers = dict(app.scopes[0]["headers"])
    assert set(headers) == {b"x-kept", b"authorization", b"x-nova-identity"}
    assert TOKEN.proven_by(headers[b"authorization"])
    caller, place = ASSERTIONS.verify(headers[b"x-nova-identity"])
    assert (caller.identity, caller.address, place) == (ALICE, "203.0.113.1", Place())
    assert bridge.SCOPE_REQUEST_ID == REQUEST_ID
    assert app.scopes[0][REQUEST_ID] == "r-1"
    assert len(app.scopes) == 1


async def test_bodies_stream_both_ways_without_waiting_for_their_end() -> None:
    seen: list[bytes] = []

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            seen.append(message["body"])
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})

    async with proxied(echo) as comet:
        client = Client()
        client.requests.get_nowait()
        task = asyncio.create_task(comet.proxy(request("POST"), client.receive, client.send))
        client.give(b"first", more=True)
        await until(lambda: client.body == b"first")
        client.give(b"second", more=True)
        await until(lambda: client.body == b"firstsecond")
        assert not task.done()
        client.give(b"", more=False)
        await asyncio.wait_for(task, 20)
    assert b"".join(seen) == b"firstsecond"


async def test_a_slow_reader_holds_the_writer_back() -> None:
    sent = 0
    piece = b"x" * (256 << 10)

    async def pour(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(400):
            await send({"type": "http.response.body", "body": piece, "more_body": number < 399})
            sent += 1

    go = asyncio.Event()
    got = 0

    async def send(message: Message) -> None:
        nonlocal got
        await go.wait()
        got += len(message.get("body", b""))

    async with proxied(pour) as comet:
        task = asyncio.create_task(comet.proxy(request(), Client().receive, send))
        await until(lambda: sent > 0)
        last = -1
        while last != sent:  # as far as it gets
            last = sent
            await asyncio.sleep(0.1)
        assert sent < 100, "the rest waits until somebody reads"
        go.set()
        await asyncio.wait_for(task, 20)
    assert (sent, got) == (400, 400 * len(piece))


async def test_a_slow_application_holds_the_uploader_back() -> None:
    read = asyncio.Event()
    total = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal total
        await read.wait()
        more = True
        while more:
            message = await receive()
            total += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    taken = 0

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"y" * (256 << 10), "more_body": taken < 400}

    async with proxied(app) as comet:
        client = Client()

        async def once() -> Message:
            if taken >= 400:
                await asyncio.Event().wait()
            return await receive()

        task = asyncio.create_task(comet.proxy(request("POST"), once, client.send))
        await until(lambda: taken > 0)
        last = -1
        while last != taken:
            last = taken
            await asyncio.sleep(0.1)
        assert taken < 100
        read.set()
        await asyncio.wait_for(task, 20)
    assert total == 400 * (256 << 10)
    assert client.status == 204


async def test_a_client_that_leaves_is_seen_inside() -> None:
    inside: list[str] = []
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hi", "more_body": True})
        inside.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"to nobody", "more_body": False})
        ended.set()

    async with proxied(app) as comet:
        client = Client()
        task = asyncio.create_task(comet.proxy(request(), client.receive, client.send))
        await until(lambda: client.body == b"hi")
        client.leave()
        await asyncio.wait_for(ended.wait(), 20)
        await asyncio.wait_for(task, 20)
        ended.clear()
        client = Client()
        task = asyncio.create_task(comet.proxy(request(), client.receive, client.send))
        await until(lambda: client.body == b"hi")
        task.cancel()
        await asyncio.wait_for(ended.wait(), 20)
    assert inside == ["http.disconnect", "http.disconnect"]


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_seen_inside() -> None:
    inside: list[str] = []
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not inside or inside[-1] != "http.disconnect":
            inside.append((await receive())["type"])
        ended.set()

    async with proxied(app) as comet:
        client = Client()
        client.requests.get_nowait()
        client.give(b"half", more=True)
        task = asyncio.create_task(comet.proxy(request("POST"), client.receive, client.send))
        await until(lambda: bool(inside))
        client.leave()
        await asyncio.wait_for(ended.wait(), 20)
        await asyncio.wait_for(task, 20)
        assert not client.answers


async def test_an_answer_before_the_body_is_complete_ends_the_exchange() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too much"})

    async with proxied(app) as comet:
        client = Client()
        client.requests.get_nowait()
        client.give(b"some", more=True)
        await asyncio.wait_for(comet.proxy(request("POST"), client.receive, client.send), 20)
        assert (client.status, client.body) == (413, b"too much")


async def test_an_answer_while_the_client_is_still_sending_gets_through() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too much"})

    async def endless() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    async with proxied(app) as comet:
        for _ in range(50):
            client = Client()
            await asyncio.wait_for(comet.proxy(request("POST"), endless, client.send), 20)
            assert (client.status, client.body) == (413, b"too much")
            unsigned = request("POST", headers=[(b"x-nova-identity", b"signed-elsewhere")])
            del unsigned[ADMITTED]
            with pytest.raises(NovaError) as caught:
                await asyncio.wait_for(comet.proxy(unsigned, endless, client.send), 20)
            assert caught.value.code == "unauthenticated"


async def test_what_refuses_the_body_at_the_door_is_what_the_client_hears() -> None:
    async def receive() -> Message:
        raise NovaError("payload_too_large", "at most a little")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"

    async with proxied(app) as comet:
        with pytest.raises(NovaError) as caught:
            await asyncio.wait_for(comet.proxy(request("POST"), receive, Client().send), 20)
        assert caught.value.code == "payload_too_large"


async def test_an_application_that_breaks_answers_500_or_breaks_off_and_others_go_on() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"] == b"/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        elif scope["raw_path"] == b"/fine":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"fine"})
            return
        elif scope["raw_path"] == b"/silent":
            return
        raise ZeroDivisionError("secret")

    async with proxied(app) as comet:
        client = Client()
        await comet.proxy(request(), client.receive, client.send)
        assert client.status == 500
        assert b'"code":"internal"' in client.body
        assert b"secret" not in client.body
        for path in (b"/late", b"/silent"):
            client = Client()
            with pytest.raises(NovaError) as caught:
                await comet.proxy(request(raw_path=path), client.receive, client.send)
            assert caught.value.code == "internal"
        client = Client()
        await comet.proxy(request(raw_path=b"/fine"), client.receive, client.send)
        assert client.body == b"fine"


@pytest.mark.parametrize("byte", [b"\r", b"\n", b"\x00"])
async def test_bytes_that_would_split_a_header_are_refused_on_both_ends(byte: bytes) -> None:
    app = Application()
    async with proxied(app) as comet:
        for bad in (
            request(headers=[(b"x-a", b"1" + byte + b"x-b: 2")]),
            request(headers=[(b"x" + byte, b"1")]),
            request(raw_path=b"/a" + byte + b"b"),
            request(query=b"a" + byte),
        ):
            with pytest.raises(NovaError) as caught:
                await comet.proxy(bad, Client().receive, Client().send)
            assert caught.value.code == "validation_failed"
        app.headers = [(b"x-out", b"1" + byte)]
        client = Client()
        await comet.proxy(request(), client.receive, client.send)
        assert client.status == 500, "an application that tries it is broken"
    head = pb.HttpHead(method="GET", raw_path=b"/", headers=[pb.Header(name=b"x", value=b"1" + byte)])
    heads = [
        head,
        pb.HttpHead(method="GET", raw_path=b"/" + byte),
        pb.HttpHead(method="GET", raw_path=b"no-slash"),
        None,
    ]
    async with serving(invoker=FakeInvoker(), application=app) as server, raw(server.port) as client_:
        for bad_head in heads:
            stream = client_.method("stream_stream", "ProxyHTTP")(metadata=metadata())
            await stream.write(pb.HttpPart(head=bad_head, end=True).SerializeToString())
            assert pb.HttpPart.FromString(await stream.read()).failure.code == "validation_failed"
            await stream.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stream.read()
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(app.scopes) == 1


async def test_head_and_empty_answers() -> None:
    app = Application()
    app.headers = [(b"content-length", b"5")]
    async with proxied(app) as comet:
        client = Client()
        await comet.proxy(request("HEAD"), client.receive, client.send)
        assert client.body == b""
        assert client.answers[0]["headers"] == [(b"content-length", b"5")]
        app.status, app.headers, app.pieces = 204, [], []
        client = Client()
        await comet.proxy(request("DELETE"), client.receive, client.send)
        assert (client.status, client.body) == (204, b"")


async def test_event_streams_begin_at_once_and_end_with_the_server() -> None:
    async def events(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    server = server_of(invoker=FakeInvoker(), application=events, drain_s=20)
    await server.start()
    async with connected(server.port) as comet:
        client = Client()
        task = asyncio.create_task(comet.proxy(request(), client.receive, client.send))
        await asyncio.wait_for(client.came.wait(), 20)
        assert client.status == 200
        await asyncio.wait_for(server.close(), 20)
        with pytest.raises(NovaError):
            await asyncio.wait_for(task, 20)


async def test_closing_answers_what_is_in_work() -> None:
    go, began = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    server = server_of(invoker=FakeInvoker(), application=app, drain_s=5)
    await server.start()
    async with connected(server.port) as comet:
        client = Client()
        task = asyncio.create_task(comet.proxy(request(), client.receive, client.send))
        await began.wait()
        closing = asyncio.create_task(server.close())
        await until(lambda: not comet.usable)
        go.set()
        await asyncio.wait_for(task, 20)
        await asyncio.wait_for(closing, 20)
        assert client.body == b"done"


async def test_through_real_servers() -> None:
    """A real HTTP client, our HTTP server, the proxy, gRPC, an application, and back."""
    app = Application()
    app.pieces = [b"z" * 100_000] * 20
    async with proxied(app) as comet:

        async def front(scope: Scope, receive: Receive, send: Send) -> None:
            await comet.proxy({**scope, ADMITTED: (Caller(ALICE, None), None)}, receive, send)

        async with (
            serve(front) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
        ):

            async def body() -> AsyncIterator[bytes]:
                for _ in range(30):
                    yield b"q" * 70_000

            answer = await client.post("/up%20load?x=%2F", content=body())
            again = await client.get("/get")
    assert answer.content == again.content == b"z" * 2_000_000
    assert app.bodies == [b"q" * 2_100_000, b""]
    assert app.scopes[0]["raw_path"] == b"/up%20load"
