"""Calls that are answered from callbacks: real connections, the real executor, real instances."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from nova.config import PoolSettings
from nova.gateway.front import Front
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.listen import Address, listening_socket
from nova.store.db import Database
from tests.execution.stack import RealStack, real_stack
from tests.http.harness import Api, Security, client_of, security
from tests.http.sockets import RawClient, Reply

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CODE = """
import os, time
def handler(event, context):
    time.sleep(event.get("sleep", 0))
    if "fail" in event:
        raise ValueError(event["fail"])
    if "exit" in event:
        os._exit(3)
    print("seen")
    return [VERSION, event.get("n"), context.request_id]
"""
INVOKE = "/functions/hello/invoke"


@dataclass(slots=True)
class Door:
    """A served front and what is behind it. ``tasks`` counts the requests that needed a task."""

    front: Front
    server: HttpServer
    stack: RealStack
    guards: Security
    api: Api
    port: int
    tasks: int = 0

    async def deploy(self, version: int) -> None:
        await self.stack.deploy(f"VERSION = {version}\n{CODE}")

    async def begin(self, client: RawClient, **event: Any) -> None:
        """Send a call and wait until an instance has it."""
        body = json.dumps(event)
        head = f"POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        await client.send((head + body).encode())
        await until(lambda: self.stack.executor.active == 1)

    async def call(self, client: RawClient, *headers: str, **event: Any) -> Reply:
        return await client.request("POST", INVOKE, json.dumps(event).encode(), *headers)


@pytest.fixture
async def door(database: Database, tmp_path: Path) -> AsyncIterator[Door]:
    pool = PoolSettings(max_queue_wait=20)
    async with security(database) as guards, real_stack(database.dsn, tmp_path, pool) as stack, AsyncExitStack() as end:
        front = Front(stack.executor, guards.door, guards.audit, PlainTextResponse("m"), limits=guards.settings.limits)
        sock = listening_socket(Address("127.0.0.1", 0))
        port = sock.getsockname()[1]
        counted = Counted(front)
        server = HttpServer(counted, [sock], limits=ConnectionLimits(), drain_s=5)
        await server.start()
        end.push_async_callback(server.close)
        client, remote = client_of(front), client_of(front, "203.0.113.7", "nova.example")
        await end.enter_async_context(client)
        await end.enter_async_context(remote)
        door = counted.door = Door(front, server, stack, guards, Api(front, client, remote, guards), port)
        await door.deploy(1)
        async with RawClient(port) as first:
            assert (await door.call(first)).status == 200  # the cold one
        door.tasks = 0
        yield door
    assert stack.executor.active == 0


class Counted:
    """The front, and a count of what it was asked to do in a task."""

    door: Door | None = None

    def __init__(self, front: Front) -> None:
        self._front = front
        self.direct = front.direct

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.door is not None:
            self.door.tasks += 1
        await self._front(scope, receive, send)


def output(reply: Reply) -> Any:
    assert reply.status == 200, reply.body
    answer = json.loads(reply.body)
    assert answer["error"] is None
    assert answer["request_id"] == reply.headers["x-request-id"] == answer["output"][2]
    return answer["output"][:2]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_connection_carries_many_calls_without_a_task(door: Door) -> None:
    """Heads that repeat, bodies and heads that change, an error in between: each call gets its own answer."""
    async with RawClient(door.port) as client:
        for number in range(12):
            assert output(await door.call(client, n=number)) == [1, number]
        failed = json.loads((await door.call(client, fail="now")).body)
        assert failed["error"]["type"] == "ValueError"
        tail = await door.call(client, "X-Nova-Log-Type: Tail", "X-Request-ID: mine", n=5)
        assert json.loads(tail.body)["logs"] == "seen\n"
        assert tail.headers["x-client-request-id"] == "mine"
        assert output(await door.call(client, n=7)) == [1, 7]
        closed = await door.call(client, "Connection: close", n=8)
        assert (output(closed), closed.headers["connection"]) == ([1, 8], "close")
        assert await client.closed()
    assert door.tasks == 0
    ids = [call.request_id for call, _, _ in door.stack.records]
    assert len(ids) == len(set(ids)) == 17


async def test_a_repeated_head_is_judged_anew_each_time(door: Door) -> None:
    """Rates, a bad payload, a credential that is withdrawn: what one call was allowed says nothing about the next."""
    guards = door.guards
    key = await door.api.key("invoker", ["hello"])
    async with RawClient(door.port) as client:
        for payload, status in ((b'{"n": 1}', 200), (b'{"n": 1,', 400), (b'{"n": 2}', 200)):
            reply = await client.request("POST", INVOKE, payload, f"X-API-Key: {key}")
            assert reply.status == status
        async with guards.database.transaction() as conn:
            await conn.run("UPDATE api_keys SET enabled = false")
        (row,) = await guards.database.fetch("SELECT id FROM api_keys")
        await guards.keys.changed(str(row["id"]))
        refused = await client.request("POST", INVOKE, b'{"n": 3}', f"X-API-Key: {key}")
        assert (refused.status, json.loads(refused.body)["code"]) == (401, "unauthenticated")
        (trail,) = await door.api.audit()
        assert (trail["action"], trail["request_id"]) == ("auth.login", refused.headers["x-request-id"])
        rates = guards.settings.rate_limit
        rates.tiers["standard"].burst_size = 2
        rates.tiers["standard"].requests_per_second = 0.001  # no token comes back while the test runs
        rates.enabled = True
        assert [(await door.call(client, n=4)).status for _ in range(3)] == [200, 200, 429]
    assert door.tasks == 0


async def test_a_known_caller_is_refused_once_the_server_drains(door: Door) -> None:
    async with RawClient(door.port) as client:
        assert output(await door.call(client, n=1)) == [1, 1]
        door.guards.door.draining = True
        refused = await door.call(client, n=2)
        assert (refused.status, json.loads(refused.body)["code"]) == (503, "draining")


async def test_pipelined_calls_are_answered_in_order(door: Door) -> None:
    async with RawClient(door.port) as client:
        bodies = [json.dumps({"n": n, "sleep": 0.05 if n == 0 else 0}).encode() for n in range(5)]
        head = f"POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        await client.send(b"".join((head % len(body)).encode() + body for body in bodies))
        assert [output(await client.reply()) for _ in bodies] == [[1, n] for n in range(5)]


async def test_requests_in_pieces_are_whole_calls(door: Door) -> None:
    """However the bytes are cut, also after a head that is known."""
    body = b'{"n": 3}'
    raw = f"POST {INVOKE} HTTP/1.1\r\nHost: localhost:9000\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    async with RawClient(door.port) as client:
        for cut in (len(raw), 10, len(raw) - len(body), len(raw) - 1, len(raw)):
            await client.send(raw[:cut])
            if cut < len(raw):
                await asyncio.sleep(0.02)
                await client.send(raw[cut:])
            assert output(await client.reply()) == [1, 3]
        chunked = f"POST {INVOKE} HTTP/1.1\r\nHost: localhost:9000\r\nTransfer-Encoding: chunked\r\n\r\n"
        for _ in range(2):
            await client.send(chunked.encode() + b'8\r\n{"n": 3}\r\n0\r\n\r\n')
            assert output(await client.reply()) == [1, 3]
        await client.send(raw + raw[:20])
        assert output(await client.reply()) == [1, 3]
        await client.send(raw[20:])
        assert output(await client.reply()) == [1, 3]


async def test_a_deploy_between_two_calls_is_seen_by_the_second(door: Door) -> None:
    async with RawClient(door.port) as client:
        assert output(await door.call(client, n=1)) == [1, 1]
        await door.deploy(2)
        assert output(await door.call(client, n=1)) == [2, 1]
        assert output(await door.call(client, n=1)) == [2, 1]


async def test_a_client_that_leaves_ends_its_call(door: Door) -> None:
    """EX7: the call is recorded as cancelled, its instance goes, the next call is served."""
    async with RawClient(door.port) as client:
        assert output(await door.call(client, n=1)) == [1, 1]
        await door.begin(client, sleep=600)
    await until(lambda: door.stack.executor.active == 0)
    error = door.stack.records[-1][2].error
    assert error is not None
    assert error.type == "Nova.Cancelled"
    async with RawClient(door.port) as client:
        assert output(await door.call(client, n=2)) == [1, 2]


async def test_what_is_not_the_functions_fault_is_a_problem(door: Door) -> None:
    async with RawClient(door.port) as client:
        late = await door.call(client, "X-Nova-Timeout-S: 0.1", sleep=60)
        assert (late.status, json.loads(late.body)["code"]) == (504, "timeout")
        assert output(await door.call(client, n=1)) == [1, 1]
        crashed = json.loads((await door.call(client, exit=True)).body)
        assert crashed["error"]["type"] == "Nova.ExitError"
        assert output(await door.call(client, n=2)) == [1, 2]


async def test_a_closing_server_lets_a_call_finish(door: Door) -> None:
    async with RawClient(door.port) as client:
        await door.begin(client, sleep=0.3, n=1)
        closing = asyncio.create_task(door.server.close())
        reply = await client.reply()
        assert (output(reply), reply.headers["connection"]) == ([1, 1], "close")
        await closing
    assert door.tasks == 0


async def test_a_closing_server_answers_what_was_pipelined(door: Door) -> None:
    async with RawClient(door.port) as client:
        await door.begin(client, sleep=0.3, n=0)
        head = f"POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n"
        await client.send(head.encode() + b'{"n": 1}')
        connections: Any = door.server._state.connections
        await until(lambda: any(connection.pipeline for connection in connections))
        closing = asyncio.create_task(door.server.close())
        assert [output(await client.reply()) for _ in range(2)] == [[1, 0], [1, 1]]
        await closing


async def test_a_closing_server_tells_whom_it_cuts_off(door: Door) -> None:
    door.server._drain_s = 0.1
    async with RawClient(door.port) as client:
        await door.begin(client, sleep=600)
        closing = asyncio.create_task(door.server.close())
        reply = await client.reply()
        assert (reply.status, json.loads(reply.body)["code"]) == (503, "draining")
        await closing
    await until(lambda: door.stack.executor.active == 0)
