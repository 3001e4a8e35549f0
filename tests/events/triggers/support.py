"""Triggers on a real database, in front of a scripted execution plane, and a PostgreSQL that is reached over TCP."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from psycopg.conninfo import conninfo_to_dict

from nova import payload
from nova.api import triggers as api
from nova.clock import SYSTEM_CLOCK
from nova.config import EgressSettings, Settings, TriggerSettings
from nova.domain.identity import Scope
from nova.domain.message import NewMessage, Published
from nova.domain.trigger import TriggerRecord
from nova.domain.trigger import TriggerSettings as Wanted
from nova.errors import NovaError
from nova.events.triggers.base import Context, SourceEvent
from nova.events.triggers.context import Contexts
from nova.events.triggers.deliver import Delivery, Progress
from nova.events.triggers.handlers import TriggerHandlers
from nova.events.triggers.runtime import Triggers
from nova.events.triggers.targets import Ports, target_of
from nova.ids import new_id
from nova.service import ServiceGroup
from nova.store.db import Database, Row
from nova.store.listen import Listener
from nova.store.triggers import TriggerStore
from nova.work.leader import Leases
from tests.events.support import Calls
from tests.http.harness import Api, management
from tests.scheduling.support import HandClock, Held

LIMIT_S = 20


async def until(fits: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = fits()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


@dataclass
class Counted:
    """The metrics."""

    events: list[tuple[str, str]] = field(default_factory=list)

    def trigger_event(self, type: str, status: str) -> None:
        self.events.append((type, status))


@dataclass
class Topics:
    """Stands for the event bus."""

    published: list[tuple[Scope, str, NewMessage]] = field(default_factory=list)
    refuse: NovaError | None = None

    async def publish(
        self, scope: Scope, topic: str, messages: Sequence[NewMessage], *, caller: str
    ) -> Sequence[Published]:
        if self.refuse is not None:
            raise self.refuse
        known = {message.dedup_id for _, _, message in self.published}
        self.published += [(scope, topic, message) for message in messages]
        return [
            Published(new_id(), n, message.dedup_id is not None and message.dedup_id in known)
            for n, message in enumerate(messages)
        ]


@dataclass
class Workflows:
    """Stands for the engine of workflows: a key makes one run."""

    started: dict[str, tuple[str, Any, str]] = field(default_factory=dict)

    async def start(
        self,
        scope: Scope,
        workflow: str,
        payload: bytes,
        *,
        key: str,
        caller: str,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> str:
        self.started.setdefault(key, (workflow, decoded(payload), caller))
        return f"run-{len(self.started)}"


def decoded(text: bytes) -> Any:
    return payload.decode(text)


def record(**settings: Any) -> TriggerRecord:
    """A trigger as the frame gets it."""
    values: dict[str, Any] = {
        "name": "t",
        "target_type": "function",
        "target": "f",
        "qualifier": None,
        "enabled": True,
        "config": {},
        "filters": [],
        "batch_size": 1,
        "batch_window_ms": 0,
        "max_inflight": 10,
        "on_error": "dlq",
        "max_attempts": 3,
    }
    now = datetime.now(UTC)
    return TriggerRecord(new_id(), Scope(), "redis_stream", Wanted(**(values | settings)), 1, "key:maker", now, now)


def event(n: int = 0, **members: Any) -> SourceEvent:
    values: dict[str, Any] = {"id": f"e{n}", "type": "nova.trigger.redis", "source": "/triggers/t", "data": b"%d" % n}
    return SourceEvent(**(values | members))


@dataclass
class Term:
    """One term of one trigger: what a source delivers to, and what stands behind it."""

    sink: Delivery
    calls: Calls
    progress: Progress
    counted: Counted
    topics: Topics
    workflows: Workflows
    fence: Held

    @property
    def inputs(self) -> list[Any]:
        """What the function was called with, in order."""
        return [payload.decode(call.payload) for call in self.calls.seen]


@asynccontextmanager
async def term(database: Database, calls: Calls | None = None, **settings: Any) -> AsyncIterator[Term]:
    """Sleeps are short, whatever is asked for."""
    calls, clock, fence = calls or Calls(), HandClock(), Held()
    made, counted, topics, workflows = record(**settings), Counted(), Topics(), Workflows()
    progress = Progress(made.id)
    target = target_of(made, Ports(calls, topics, workflows), clock)
    sink = Delivery(made, target, progress, fence, database, clock, counted)  # type: ignore[arg-type]
    try:
        yield Term(sink, calls, progress, counted, topics, workflows, fence)
    finally:
        await sink.close()


@dataclass
class Nebula:
    """The triggers of one process."""

    triggers: Triggers
    counted: Counted
    leases: Leases
    group: ServiceGroup


@asynccontextmanager
async def nebula(
    database: Database, calls: Calls, settings: Settings, node: str = "here", topics: Topics | None = None
) -> AsyncIterator[Nebula]:
    counted = Counted()
    async with ServiceGroup() as group:
        listener = await group.start(Listener(database.dsn))
        leases = await group.start(Leases(database.dsn, listener, node=node))
        triggers = Triggers(
            database,
            listener,
            leases,
            Ports(calls, topics),
            Contexts(settings, node=node),
            events=counted,
        )
        await group.start(triggers)
        yield Nebula(triggers, counted, leases, group)


@dataclass
class Plane:
    """The API of triggers behind the real door."""

    api: Api
    db: Database

    @property
    def client(self) -> httpx.AsyncClient:
        return self.api.client

    async def create(self, **members: Any) -> dict[str, Any]:
        body = {"name": "t", "target": "f", **members}
        answer = await self.client.post("/triggers", json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        assert answer.headers["Location"] == f"/triggers/{made['id']}"
        return made

    async def patch(self, made: dict[str, Any], **members: Any) -> dict[str, Any]:
        answer = await self.client.patch(f"/triggers/{made['id']}", json=members)
        assert answer.status_code == 200, answer.text
        changed: dict[str, Any] = answer.json()
        return changed

    async def get(self, path: str) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, status: int = 200) -> Any:
        answer = await self.client.post(path)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def status(self, made: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = await self.get(f"/triggers/{made['id']}/status")
        return found

    async def running(self, made: dict[str, Any]) -> None:
        await self.state(made, "running")

    async def state(self, made: dict[str, Any], state: str) -> None:
        async def is_so() -> bool:
            return bool((await self.status(made))["state"] == state)

        await until(is_so)

    async def dead(self) -> list[Row]:
        """Dead letters, oldest first."""
        return await self.db.fetch("SELECT * FROM async_invocations WHERE status = 'dlq' ORDER BY id")


def settings_for(*roots: Path) -> Settings:
    return Settings(egress=EgressSettings(allow=["127.0.0.0/8"]), triggers=TriggerSettings(fs_roots=list(roots)))


@asynccontextmanager
async def planed(database: Database, settings: Settings | None = None) -> AsyncIterator[Plane]:
    settings = settings or settings_for()
    handlers = TriggerHandlers(database, TriggerStore(database), Contexts(settings), SYSTEM_CLOCK)
    async with management(database, [handlers], api.ROUTES, settings=settings) as running:
        yield Plane(running, database)


class Tcp:
    """The way to the tests' PostgreSQL from outside: its socket, on a port, until :meth:`cut`."""

    def __init__(self, dsn: str) -> None:
        self._parts = conninfo_to_dict(dsn)
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def dsn(self) -> str:
        user = self._parts.get("user") or ""
        return f"postgresql://{user}:hidden@127.0.0.1:{self.port}/{self._parts['dbname']}"

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = str(self._parts.get("host") or "localhost"), int(self._parts.get("port") or 5432)
        if host.startswith("/"):
            there, back = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            there, back = await asyncio.open_connection(host, port)
        self._writers |= {writer, back}
        with suppress(OSError):
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._writers -= {writer, back}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def over_tcp(dsn: str) -> AsyncIterator[Tcp]:
    async with AsyncExitStack() as stack:
        tcp = Tcp(dsn)
        server = await asyncio.start_server(tcp.carry, "127.0.0.1", 0)
        tcp.port = server.sockets[0].getsockname()[1]
        stack.callback(tcp.cut)
        stack.callback(server.close)
        yield tcp


def context(settings: Settings | None = None, window: int = 10) -> Context:
    """What a source gets of the platform, for a source without the frame."""
    made = record(max_inflight=window)
    return Contexts(settings or settings_for()).of(made)
