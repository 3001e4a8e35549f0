"""The reverse proxy between two real servers: bytes as they came, streams as they come, nothing forged, nothing left behind."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from nova.http.exchange import Exchange
from nova.http.inner import Inner
from nova.http.protocol import ConnectionLimits
from tests.http.harness import serve
from tests.http.sockets import RawClient
from tests.http.upstream import TOKEN, Upstream, proxied

pytestmark = pytest.mark.anyio
MB = 1 << 20


@dataclass
class Chain:
    upstream: Upstream
    port: int


@pytest.fixture
async def chain() -> AsyncIterator[Chain]:
    upstream = Upstream()
    async with serve(upstream) as behind, proxied(behind) as port:
        yield Chain(upstream, port)


@pytest.mark.parametrize(
    "target",
    [
        "/a%20b/c%2Fd?x=%0d%0aSet-Cookie:%20y=1&&z",
        "/a%0d%0aX-Injected:%201/b",
        "/%00/%ff/%",
        "/a;b,c/'\"<>{}|^`",
        "//a///b/../c/./d",
        "/?",
        "/x?a=b?c",
    ],
)
async def test_path_and_query_arrive_as_they_came(chain: Chain, target: str) -> None:
    """GW1: no byte of a path is decoded, encoded or taken for a head on the way."""
    async with RawClient(chain.port) as client:
        reply = await client.request("GET", target)
        assert reply.status == 200
        seen = json.loads(reply.body)
        path, _, query = target.partition("?")
        assert (seen["raw_path"], seen["query"]) == (path, query)
        assert not [name for name, _ in seen["headers"] if name in ("set-cookie", "x-injected")]
        assert "x-injected" not in reply.headers


async def test_headers_go_on_except_those_of_the_connection_and_what_a_client_may_not_say(chain: Chain) -> None:
    """GW9: identity, addresses and request ids of the platform are never the client's own."""
    forged = [
        "X-Nova-Identity: forged",
        "X-Nova-Request-Id: 00000000-0000-7000-8000-000000000000",
        "X-Nova-Tenant: other",
        "X-Nova-Made-Up: 1",
        "X-Forwarded-For: 203.0.113.9",
        "Forwarded: for=203.0.113.9",
        "Authorization: Bearer nk_secret",
        "X-API-Key: nk_secret",
    ]
    kept = ["X-Nova-Timeout-S: 3", "Accept: a", "Accept: b", "X-Own: \xe9", "Host: shop.example"]
    hops = ["Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "TE: trailers", "Upgrade: h2c"]
    async with RawClient(chain.port) as client:
        await client.send("\r\n".join(["GET / HTTP/1.1", *forged, *kept, *hops, "", ""]).encode("latin-1"))
        reply = await client.reply()
    (seen,) = chain.upstream.seen
    pairs = [tuple(pair) for pair in seen["headers"]]
    names = {name for name, _ in pairs}
    assert {("accept", "a"), ("accept", "b"), ("x-own", "\xe9"), ("host", "shop.example")} <= set(pairs)
    assert ("x-nova-timeout-s", "3") in pairs
    assert not names & {"x-nova-identity", "x-nova-tenant", "x-nova-made-up", "x-api-key", "forwarded"}
    assert not names & {"x-hop", "te", "upgrade", "keep-alive", "x-forwarded-for"}
    assert [value for name, value in pairs if name == "authorization"] == [TOKEN.bearer.decode()]
    assert [value for name, value in pairs if name == "x-nova-request-id"] == [reply.headers["x-request-id"]]
    assert "nk_secret" not in json.dumps(seen)
    assert "x-private" not in reply.headers


async def test_the_plane_adopts_the_doors_request_id_and_nobody_elses() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send)
        seen.append(exchange.request_id)
        await exchange.answer(200, [], b"")

    async with serve(Inner(app, TOKEN.proven_by)) as behind:
        async with proxied(behind) as port, RawClient(port) as client:
            reply = await client.request("GET", "/")
            assert seen == [reply.headers["x-request-id"]]
        async with RawClient(behind) as client:
            stranger = "00000000-0000-7000-8000-000000000000"
            await client.request("GET", "/", b"", f"X-Nova-Request-Id: {stranger}")
            assert seen[-1] != stranger


async def test_a_stream_passes_before_it_ends(chain: Chain) -> None:
    """GW4: the first byte is there while the upstream still holds the last; repeated headers stay repeated."""
    async with RawClient(chain.port) as client:
        await client.send(b"GET /parts HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"set-cookie: a=1\r\n" in head
        assert b"set-cookie: b=2\r\n" in head
        assert await client.reader.readexactly(10) == b"5\r\nfirst\r\n"
        chain.upstream.gate.set()
        assert await client.reader.readexactly(14) == b"4\r\nlast\r\n0\r\n\r\n"
        assert (await client.request("GET", "/")).status == 200


async def test_a_body_passes_before_it_ends(chain: Chain) -> None:
    """The upstream has the first piece while the client still holds the last."""
    async with RawClient(chain.port) as client:
        await client.send(b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        async with asyncio.timeout(20):
            await chain.upstream.began.wait()
        await client.send(b"0\r\n\r\n")
        assert (await client.reply()).body == b"all"


@pytest.mark.parametrize("path", ["/wait", "/parts"])
async def test_a_client_that_leaves_is_missed_by_the_upstream(chain: Chain, path: str) -> None:
    async with RawClient(chain.port) as client:
        await client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if path == "/parts":
            await client.reader.readuntil(b"first")
        else:
            await chain.upstream.began.wait()
    async with asyncio.timeout(20):
        await chain.upstream.gone.wait()


async def test_bodies_of_both_framings_arrive_whole(chain: Chain) -> None:
    """EX12: lengths and chunks stay what they are, and the connection stays usable."""
    async with RawClient(chain.port) as client:
        body = b"x" * (2 * MB)
        seen = json.loads((await client.request("POST", "/", body)).body)
        assert seen["size"] == len(body)
        assert ["content-length", str(len(body))] in seen["headers"]
        await client.send(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            await client.send(b"8000\r\n" + b"y" * 0x8000 + b"\r\n")
        await client.send(b"0\r\n\r\n")
        seen = json.loads((await client.reply()).body)
        assert seen["size"] == 20 * 0x8000
        assert ["transfer-encoding", "chunked"] in seen["headers"]
        assert json.loads((await client.request("POST", "/")).body)["size"] == 0
        reply = await client.request("GET", "/bytes")
        assert (len(reply.body), reply.headers["content-length"]) == (3_000_000, "3000000")


async def test_heads_and_empty_answers_have_no_body(chain: Chain) -> None:
    async with RawClient(chain.port) as client:
        head = await client.request("HEAD", "/bytes")
        assert (head.status, head.headers["content-length"]) == (200, "3000000")
        for status in (204, 304):
            reply = await client.request("GET", f"/status/{status}")
            assert (reply.status, reply.headers.get("content-length", "0")) == (status, "0")
        assert json.loads((await client.request("GET", "/")).body)["method"] == "GET"


async def test_a_client_that_waits_for_100_gets_it(chain: Chain) -> None:
    async with RawClient(chain.port) as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert json.loads((await client.reply()).body)["size"] == 3


async def test_an_answer_before_the_whole_body_reaches_the_client(chain: Chain) -> None:
    """EX12: what a plane refuses early is its own refusal, not a broken connection."""
    async with RawClient(chain.port) as client:
        await client.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n")
        await client.send(b"x" * 8_000_000)
        reply = await client.reply()
        assert (reply.status, reply.body) == (409, b"no")


async def test_a_client_that_drips_its_body_is_cut_off_on_both_sides() -> None:
    """GW10: the plane is not kept waiting by a client that the door gave up."""
    upstream, limits = Upstream(), ConnectionLimits(header_timeout_s=0.3)
    async with serve(upstream) as behind, proxied(behind, limits) as port, RawClient(port) as client:
        await client.send(b"POST /first HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        reply = await client.reply()
        assert (reply.status, json.loads(reply.body)["code"]) == (408, "request_timeout")
        async with asyncio.timeout(20):
            await upstream.gone.wait()
        assert await client.closed()


async def test_an_upstream_that_is_down_is_a_503_that_says_when_to_come_back() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with proxied(unused.getsockname()[1]) as port, RawClient(port) as client:
            for method in ("GET", "POST"):
                reply = await client.request(method, "/", b"{}")
                assert (reply.status, json.loads(reply.body)["code"]) == (503, "dependency_unavailable")
                assert reply.headers["retry-after"] == "1"


async def test_an_upstream_that_is_silent_is_a_504() -> None:
    """A process that was stopped keeps its connections: the wait is bounded all the same."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with proxied(silent.getsockname()[1], answer_timeout_s=0.2) as port, RawClient(port) as client:
            reply = await client.request("GET", "/")
            assert (reply.status, json.loads(reply.body)["code"]) == (504, "timeout")


async def _client_of(stack: AsyncExitStack, answer: Any) -> RawClient:
    """A client of a proxy whose upstream speaks for itself."""
    server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
    port = await stack.enter_async_context(proxied(server.sockets[0].getsockname()[1]))
    return await stack.enter_async_context(RawClient(port))


@pytest.mark.parametrize(("method", "status", "asked"), [("GET", 200, 2), ("DELETE", 200, 2), ("POST", 503, 1)])
async def test_a_connection_reset_before_the_answer_is_tried_again_when_that_does_no_harm(
    method: str, status: int, asked: int
) -> None:
    heads = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if len(heads) > 1:
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with AsyncExitStack() as stack:
        client = await _client_of(stack, answer)
        reply = await client.request(method, "/")
        assert (reply.status, len(heads)) == (status, asked)
        assert "x-hop" not in reply.headers


async def test_a_body_that_began_is_not_sent_twice() -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"abc")
        writer.close()
        await writer.wait_closed()

    async with AsyncExitStack() as stack:
        client = await _client_of(stack, answer)
        reply = await client.request("PUT", "/", b"abc")
        assert (reply.status, connections) == (503, 1)


async def test_an_answer_that_breaks_off_breaks_off_for_the_client(chain: Chain) -> None:
    """Half an answer is never made to look whole."""
    async with RawClient(chain.port) as client:
        await client.send(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        received = await client.reader.read()
        assert b"some" in received
        assert not received.endswith(b"0\r\n\r\n")
    async with RawClient(chain.port) as client:
        assert (await client.request("GET", "/")).status == 200


async def test_a_reader_that_is_slow_slows_the_upstream_and_fills_no_memory(chain: Chain) -> None:
    """GW4: a client that does not read keeps the upstream from producing on."""
    produced = 0

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        nonlocal produced
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(256):
            await send({"type": "http.response.body", "body": b"x" * MB, "more_body": True})
            produced += 1

    async with serve(flood) as behind, proxied(behind) as port, RawClient(port) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.reader.readexactly(1000)
        before = -1
        async with asyncio.timeout(10):
            while before != produced:  # until it stands still
                before = produced
                await asyncio.sleep(0.3)
        assert produced < 64
