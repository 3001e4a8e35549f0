"""``invoke-async`` at the front: plain ones are put into the queue there, all others are the route table's."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from starlette.responses import PlainTextResponse

from nova.domain.asyncs import MAX_PAYLOAD
from nova.domain.call import Accepted, AsyncOptions, CallRequest
from nova.errors import NovaError
from nova.gateway.front import Front
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.listen import Address, listening_socket
from nova.store.db import Database
from tests.gateway.fakes import FakeInvoker
from tests.http.harness import security
from tests.http.sockets import RawClient

pytestmark = pytest.mark.anyio
PATH = "/functions/hello/invoke-async"
JSON = "Content-Type: application/json"


@dataclass(slots=True)
class Taken:
    """Accepts every call, or refuses each."""

    calls: list[CallRequest] = field(default_factory=list)
    refusal: NovaError | None = None

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        if self.refusal is not None:
            raise self.refusal
        assert options == AsyncOptions()
        self.calls.append(call)
        return Accepted(f"job-{len(self.calls)}", "queued")


class Starting(FakeInvoker):
    def begin(self, call: CallRequest, done: object) -> None:
        return None


@pytest.fixture
async def served(database: Database) -> AsyncIterator[tuple[Taken, RawClient]]:
    taken = Taken()
    async with security(database) as guards, AsyncExitStack() as end:
        limits = guards.settings.limits
        front = Front(Starting(), guards.door, guards.audit, PlainTextResponse("table"), limits=limits, acceptor=taken)
        sock = listening_socket(Address("127.0.0.1", 0))
        server = HttpServer(front, [sock], limits=ConnectionLimits(), drain_s=5)
        await server.start()
        end.push_async_callback(server.close)
        yield taken, await end.enter_async_context(RawClient(sock.getsockname()[1]))


async def test_the_payload_keeps_its_bytes(served: tuple[Taken, RawClient]) -> None:
    taken, client = served
    answer = await client.request("POST", PATH, b'{ "payload" : {"n":1.50,\n"\xc3\xa4": [ ]} }', JSON)
    assert (answer.status, answer.headers["location"]) == (202, "/async-invocations/job-1")
    assert answer.body == b'{"invocation_id":"job-1","status":"queued","function":"hello"}'
    call = taken.calls[0]
    assert (call.function, call.payload) == ("hello", b'{"n":1.50, "\xc3\xa4": [ ]}')
    assert answer.headers["x-request-id"] == call.request_id
    assert (await client.request("POST", PATH, b"{}")).status == 202
    assert taken.calls[1].payload == b"{}"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"payload": 1, "delay_s": 5}', []),
        (b'{"payload": 1, "delay_z": 5}', []),
        (b'{"payload": NaN}', []),
        (b'{"payload": "\xff"}', []),
        (b"[1]", []),
        (b"", []),
        (b'{"payload": "%b"}' % (b"x" * MAX_PAYLOAD), []),
        (b'{"payload": 1}', ["Idempotency-Key: k"]),
        (b'{"payload": 1}', ["Content-Type: text/plain"]),
        (b'{"payload": 1}', ["Origin: https://example.org"]),
        (b'{"payload": 1}', ["traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01"]),
    ],
)
async def test_what_says_more_goes_to_the_route_table(
    served: tuple[Taken, RawClient], body: bytes, headers: list[str]
) -> None:
    taken, client = served
    answer = await client.request("POST", PATH, body, *headers)
    assert (answer.body, taken.calls) == (b"table", [])


async def test_refusals_are_problem_documents(served: tuple[Taken, RawClient]) -> None:
    taken, client = served
    taken.refusal = NovaError("queue_full", "too many", retry_after_s=3)
    answer = await client.request("POST", PATH, b'{"payload": 1}', JSON)
    assert (answer.status, answer.headers["retry-after"]) == (503, "3")
    denied = await client.request("POST", PATH, b'{"payload": 1}', JSON, "X-API-Key: nova_wrong")
    assert denied.status == 401
