"""What every plane stands on: the data directory, the database with the current schema, notifications, the nouns' stores."""

from dataclasses import dataclass

from nova.app.process import Process
from nova.clock import SYSTEM_CLOCK
from nova.control.settings import LiveSettings
from nova.errors import NovaError
from nova.security.assertion import Assertions
from nova.security.guards import Door, DoorEvents
from nova.security.identity import KeyRing
from nova.security.limits import RateLimiter
from nova.security.scope import Directory
from nova.security.service import ServiceToken, load_token
from nova.security.service_door import ServiceDoor
from nova.store.aliases import AliasStore
from nova.store.apikeys import KeyStore
from nova.store.audit import AuditStore
from nova.store.blobs import BlobStore
from nova.store.builds import BuildStore
from nova.store.db import Database
from nova.store.embedded import DirectoryLock, EmbeddedPostgres
from nova.store.functions import FunctionStore
from nova.store.invocations import InvocationStore
from nova.store.keeper import Keeper
from nova.store.listen import Listener
from nova.store.migrate import migrate
from nova.store.rollouts import RolloutStore
from nova.store.settings import SettingsStore
from nova.store.tenants import TenantStore
from nova.store.versions import VersionStore

_EMBEDDED_CONNS = 200
"""Of the embedded server's 250 connections, what workers share."""
_MORE_CONNS = 3
"""Connections of a worker beside its pool: notifications, leases."""


class Stores:
    """Every noun's way to PostgreSQL."""

    def __init__(self, dsn: str, db: Database, listener: Listener) -> None:
        self.dsn = dsn
        self.db = db
        self.listener = listener
        self.blobs = BlobStore(db)
        self.functions = FunctionStore(db)
        self.versions = VersionStore(db, self.blobs)
        self.aliases = AliasStore(db)
        self.rollouts = RolloutStore(db, self.functions, self.versions, self.aliases)
        self.keys = KeyStore(db)
        self.tenants = TenantStore(db)
        self.audit = AuditStore(db)
        self.settings = SettingsStore(db)
        self.invocations = InvocationStore(db)
        self.builds = BuildStore(db)


@dataclass(frozen=True, slots=True)
class Known:
    """Keys and tenants, in memory."""

    keys: KeyRing
    directory: Directory


@dataclass(frozen=True, slots=True)
class Trust:
    """What processes of the platform prove themselves to each other with."""

    token: ServiceToken
    assertions: Assertions


async def open_stores(
    process: Process, *, alone: bool, workers: int = 0, server: EmbeddedPostgres | None = None
) -> Stores:
    """The database, reached and current. ``alone``: no other process may use the data directory (``nova up``). ``workers``: the
    directory is a supervisor's, and this process one of so many that it has. ``server``: the embedded one, if begun."""
    settings, services = process.settings, process.services
    if not workers:
        lock = DirectoryLock(settings.data_dir, shared=not alone)
        lock.acquire()
        services.callback(lock.release)
    dsn, most = settings.postgres.dsn, settings.postgres.max_conns
    if not dsn:
        if workers:
            most = max(2, min(most, _EMBEDDED_CONNS // workers - _MORE_CONNS))
        process.say("starting the database")
        server = server or EmbeddedPostgres(settings.data_dir)
        await services.start(Keeper(server))
        dsn = server.dsn
    try:
        await migrate(dsn)
    except OSError as exc:
        raise NovaError("dependency_unavailable", f"the database does not answer: {exc}") from exc
    db = await services.start(
        Database(
            dsn,
            min_conns=min(settings.postgres.min_conns, most),
            max_conns=most,
            statement_timeout_s=settings.postgres.statement_timeout,
        )
    )
    listener = await services.start(Listener(dsn))
    db.on_commit = listener.deliver
    listener.on_reconnect(db.refresh)
    return Stores(dsn, db, listener)


async def open_settings(process: Process, stores: Stores) -> LiveSettings:
    """The settings that were changed on a running server, and those that will be."""
    return await process.services.start(
        LiveSettings(process.loaded, stores.settings, stores.listener, process.settings_changed)
    )


async def open_known(process: Process, stores: Stores) -> Known:
    services = process.services
    keys = KeyRing(stores.keys, stores.listener, process.settings.auth.api_keys, SYSTEM_CLOCK)
    return Known(await services.start(keys), await services.start(Directory(stores.tenants, stores.listener)))


async def open_trust(process: Process, stores: Stores) -> Trust:
    token = await load_token(stores.db, process.settings.grpc.service_token)
    return Trust(token, Assertions(token, SYSTEM_CLOCK))


def front_door(process: Process, known: Known, events: DoorEvents) -> Door:
    """The door of whoever clients speak to."""
    settings = process.settings
    limiter = RateLimiter(settings.rate_limit, SYSTEM_CLOCK)
    return Door(settings.auth, settings.http, known.keys, known.directory, limiter, SYSTEM_CLOCK, events=events)


def inner_door(process: Process, known: Known, trust: Trust, events: DoorEvents) -> ServiceDoor:
    """The door of a plane behind zenith: it believes what zenith signed, and nothing else."""
    origins = process.settings.http.cors_origins
    return ServiceDoor(trust.token, trust.assertions, known.directory, origins=origins, events=events)
