"""The front on a real socket, with an invoker that answers by itself."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from starlette.responses import PlainTextResponse

from nova.gateway.front import Front
from nova.gateway.modes import UrlModes
from nova.store.db import Database
from nova.store.functions import FunctionStore
from tests.gateway.fakes import FakeInvoker
from tests.http.harness import Api, Security, client_of, security, serve


@dataclass(slots=True)
class Gateway:
    front: Front
    invoker: FakeInvoker
    guards: Security
    api: Api
    port: int


@pytest.fixture
async def gateway(database: Database) -> AsyncIterator[Gateway]:
    invoker = FakeInvoker()
    async with security(database) as guards:
        modes = UrlModes(FunctionStore(database), guards.listener)
        behind = PlainTextResponse("management")
        front = Front(invoker, guards.door, guards.audit, behind, limits=guards.settings.limits, modes=modes)
        client, remote = client_of(front), client_of(front, "203.0.113.7", "nova.example")
        async with serve(front) as port, client, remote:
            yield Gateway(front, invoker, guards, Api(front, client, remote, guards), port)
