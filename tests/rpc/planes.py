"""Both ends of the RPC layer in one process: a real server around ports of the test's own, and a real connection to it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from nova.clock import SYSTEM_CLOCK
from nova.domain.call import CallRequest
from nova.domain.identity import Grant, Identity, Scope
from nova.ids import new_id
from nova.rpc.remote import CometConnection
from nova.rpc.server import RpcServer
from nova.rpc.transport import AUTHORIZATION, EXECUTION, IDENTITY
from nova.security.assertion import Assertions
from nova.security.guards import Caller
from nova.security.service import ServiceToken

TOKEN = ServiceToken(b"the-token-of-these-tests")
ASSERTIONS = Assertions(TOKEN, SYSTEM_CLOCK)
ALICE = Identity("key:alice", frozenset({"default"}), grants=(Grant(frozenset({"function:invoke"}), ("he*",)),))


async def well() -> Mapping[str, bool]:
    return {"postgres": True}


def make_call(payload: bytes = b"{}", function: str = "hello", **values: Any) -> CallRequest:
    scope = values.pop("scope", Scope())
    identity = values.pop("identity", ALICE)
    received = SYSTEM_CLOCK.monotonic()
    return CallRequest(new_id(), scope, function, payload, identity, received, **values)


def server_of(address: str = "127.0.0.1:0", **ports: Any) -> RpcServer:
    values = {"healthy": well, "drain_s": 2.0, **ports}
    return RpcServer(address, values.pop("token", TOKEN), ASSERTIONS, **values)


@asynccontextmanager
async def serving(address: str = "127.0.0.1:0", **ports: Any) -> AsyncIterator[RpcServer]:
    server = server_of(address, **ports)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connected(address: str | int, **values: Any) -> AsyncIterator[CometConnection]:
    if isinstance(address, int):
        address = f"127.0.0.1:{address}"
    connection = CometConnection(address, values.pop("token", TOKEN), ASSERTIONS, **values)
    await connection.start()
    try:
        yield connection
    finally:
        await connection.close()


@dataclass(slots=True)
class Raw:
    """A client without any of our code, for what a well-behaved one never does."""

    channel: grpc.aio.Channel

    def method(self, kind: str, name: str) -> Any:
        return getattr(self.channel, kind)(f"/{EXECUTION}/{name}")


@asynccontextmanager
async def raw(port: int, options: list[tuple[str, Any]] | None = None) -> AsyncIterator[Raw]:
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0), *(options or [])]
    ) as channel:
        yield Raw(channel)


def metadata(identity: Identity = ALICE, scope: Scope = Scope(), **more: str) -> tuple[tuple[str, str], ...]:
    text = ASSERTIONS.sign(Caller(identity, "203.0.113.9"), scope)
    return (
        (AUTHORIZATION, TOKEN.bearer.decode()),
        (IDENTITY, text),
        *((name.replace("_", "-"), value) for name, value in more.items()),
    )


async def until(condition: Any, limit_s: float = 20.0) -> None:
    """Wait for a condition; fail when it does not come true."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
