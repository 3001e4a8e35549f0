"""The management API in a test: real handlers behind the real binder and door, on the test's own database.

    async with management(database, [Functions(...)], FUNCTION_ROUTES) as api:
        answer = await api.client.post("/functions", json={...})      # as the local operator
        key = await api.key("viewer", functions=["a"])
        answer = await api.client.get("/functions/a", headers={"X-API-Key": key}, ...)

``api.remote`` is a client from another host: the local operator's rights do not apply to it. With :func:`serve` the same
application answers on a real socket.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
from starlette.types import ASGIApp

from nova.api.table import Route
from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import Settings
from nova.http.bind import bind
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.ids import new_id
from nova.listen import Address, listening_socket
from nova.security.guards import Door
from nova.security.identity import KeyRing, new_key
from nova.security.limits import RateLimiter
from nova.security.scope import Directory
from nova.service import ServiceGroup
from nova.store.apikeys import KeyGrant, KeySettings, KeyStore
from nova.store.audit import AuditStore
from nova.store.db import Database, Row
from nova.store.listen import Listener
from nova.store.tenants import TenantStore


@dataclass(slots=True)
class Security:
    """The door and what stands behind it."""

    settings: Settings
    database: Database
    listener: Listener
    keys: KeyRing
    directory: Directory
    door: Door
    audit: AuditStore


@asynccontextmanager
async def security(
    database: Database, settings: Settings | None = None, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[Security]:
    """Everything that decides who may come in, started."""
    settings = settings or Settings()
    async with ServiceGroup() as group:
        listener = await group.start(Listener(database.dsn))
        keys = await group.start(KeyRing(KeyStore(database), listener, settings.auth.api_keys, clock))
        directory = await group.start(Directory(TenantStore(database), listener))
        limiter = RateLimiter(settings.rate_limit, clock)
        door = Door(settings.auth, settings.http, keys, directory, limiter, clock)
        yield Security(settings, database, listener, keys, directory, door, AuditStore(database))


@dataclass(slots=True)
class Api:
    """``client`` calls as the local operator, ``remote`` from 203.0.113.7 without any right."""

    app: ASGIApp
    client: httpx.AsyncClient
    remote: httpx.AsyncClient
    guards: Security

    async def key(
        self,
        role: str = "admin",
        functions: Sequence[str] = (),
        *,
        tenant: str = "default",
        namespaces: Sequence[str] = (),
        grants: Sequence[KeyGrant] | None = None,
        ip_allow: Sequence[str] = (),
    ) -> str:
        """The text of a new API key, usable at once."""
        text, secret = new_key()
        settings = KeySettings(
            tier="standard",
            enabled=True,
            permissions=tuple(grants) if grants is not None else (KeyGrant(role, tuple(functions)),),
            namespaces=tuple(namespaces),
            ip_allow=tuple(ip_allow),
            description="",
            expires_at=None,
        )
        key_id = new_id()
        async with self.guards.database.transaction() as conn:
            await KeyStore(self.guards.database).insert(
                conn, key_id, tenant, f"test-{key_id[-12:]}", secret, settings, "test"
            )
        await self.guards.keys.changed(key_id)
        return text

    async def tenant(self, tenant: str, *namespaces: str) -> None:
        """A tenant with namespace ``default`` and more."""
        store = TenantStore(self.guards.database)
        async with self.guards.database.transaction() as conn:
            await store.insert(conn, tenant, tenant, "active", "standard")
            for name in namespaces:
                await store.insert_namespace(conn, tenant, name, "")
        await self.guards.directory.changed(tenant)

    async def audit(self) -> list[Row]:
        """The audit trail, oldest first."""
        return await self.guards.database.fetch("SELECT * FROM audit_logs ORDER BY created_at, id")


def client_of(app: ASGIApp, peer: str = "127.0.0.1", host: str = "localhost:9000") -> httpx.AsyncClient:
    """An HTTP client whose requests reach ``app`` from ``peer``."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(peer, 40000))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}")


@asynccontextmanager
async def management(
    database: Database,
    owners: Iterable[object],
    table: Iterable[Route],
    *,
    settings: Settings | None = None,
    clock: Clock = SYSTEM_CLOCK,
    guards: Security | None = None,
) -> AsyncIterator[Api]:
    """The application for these routes and handlers, behind ``guards`` or guards of its own."""
    async with AsyncExitStack() as stack:
        if guards is None:
            guards = await stack.enter_async_context(security(database, settings, clock))
        app = bind(table, owners, door=guards.door, audit=guards.audit, limits=guards.settings.limits)
        client = await stack.enter_async_context(client_of(app))
        remote = await stack.enter_async_context(client_of(app, "203.0.113.7", "nova.example"))
        yield Api(app, client, remote, guards)


@asynccontextmanager
async def serve(app: ASGIApp, limits: ConnectionLimits | None = None, *, drain_s: float = 2.0) -> AsyncIterator[int]:
    """``app`` on a real socket of 127.0.0.1; the port."""
    sock = listening_socket(Address("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    server = HttpServer(app, [sock], limits=limits or ConnectionLimits(), drain_s=drain_s)
    await server.start()
    try:
        yield port
    finally:
        await server.close()
