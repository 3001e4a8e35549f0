"""Functions that exist in the database and nowhere else, and a queue in front of a scripted execution plane."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb
from uuid_utils import uuid7

from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import EgressSettings
from nova.domain.call import AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Identity, Scope
from nova.errors import FunctionError, NovaError, internal
from nova.events.accept import Queue
from nova.events.deliveries import Deliveries
from nova.events.jobs import AsyncJobs
from nova.events.observers import NoEvents
from nova.events.waiting import Endings
from nova.events.webhook_secrets import WebhookSecrets
from nova.events.webhooks import WebhookSender
from nova.events.workflows.definitions import Definitions
from nova.events.workflows.runs import Runs
from nova.ids import new_id
from nova.security.egress import client as client_of
from nova.service import ServiceGroup
from nova.store.asyncs import NewJob
from nova.store.asyncs_admin import AsyncStore
from nova.store.db import Database, Row
from nova.store.jobs import JobStore
from nova.store.listen import Listener
from nova.store.workflow_runs import RunStore
from nova.work.handover import Handover
from nova.work.notices import Notices
from nova.work.runner import Runner


async def function(db: Database, name: str = "f", *, scope: Scope = Scope(), **recorded: object) -> str:
    """A function's row, without versions; its id. ``recorded`` are settings such as ``async_policy``."""
    function_id = new_id()
    await db.run(
        "INSERT INTO functions (id, tenant_id, namespace, name, data, etag, created_by)"
        " VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(data)s, '', 'test')",
        id=function_id,
        tenant=scope.tenant,
        namespace=scope.namespace,
        name=name,
        data=Jsonb({"recorded": recorded}),
    )
    return function_id


async def tenant(db: Database, name: str) -> Scope:
    """Another tenant with namespace ``default``."""
    await db.run("INSERT INTO tenants (id, name) VALUES (%(name)s, %(name)s)", name=name)
    await db.run("INSERT INTO namespaces (tenant_id, name) VALUES (%(name)s, 'default')", name=name)
    return Scope(name)


def id_at(at: datetime) -> str:
    """As it was made then."""
    return str(uuid7(nanoseconds=int(at.timestamp()) * 10**9))


def job(
    payload: bytes = b"{}",
    *,
    function: str = "f",
    scope: Scope = Scope(),
    depth: int = 0,
    id: str | None = None,
    **options: object,
) -> NewJob:
    return NewJob(
        id=id or new_id(),
        scope=scope,
        function=function,
        payload=payload,
        options=AsyncOptions(**options),  # type: ignore[arg-type]
        caller="key:test",
        source="api",
        depth=depth,
    )


Script = Callable[[CallRequest], Awaitable[CallResult]]


def result(call: CallRequest, output: bytes | None = b"null", error: FunctionError | None = None) -> CallResult:
    return CallResult(call.request_id, 3, output if error is None else None, error, 1500, False, "i-1")


class Calls:
    """Stands for the execution plane: does what the test says with each call, and remembers the calls."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script
        self.seen: list[CallRequest] = []

    async def invoke(self, call: CallRequest) -> CallResult:
        self.seen.append(call)
        if self.script is not None:
            return await self.script(call)
        return result(call, call.payload)


class Starting:
    """The same, for callers who have no task of their own for a call."""

    def __init__(self, calls: Calls) -> None:
        self.invoke = calls.invoke
        self._calls = calls

    def begin(self, call: CallRequest, done: Callable[[CallResult | NovaError], None]) -> "asyncio.Task[None]":
        async def run() -> None:
            try:
                outcome: CallResult | NovaError = await self._calls.invoke(call)
            except NovaError as refusal:
                outcome = refusal
            except Exception:  # as the executor does
                outcome = internal()
            done(outcome)

        return asyncio.create_task(run())


STARTS: ContextVar[bool] = ContextVar("starts", default=False)
"""Whether the execution plane of :func:`nebula` starts calls without a task."""


def failing(*outcomes: BaseException | FunctionError) -> Script:
    """Each call in its turn ends so; those after the last succeed."""
    left = list(outcomes)

    async def script(call: CallRequest) -> CallResult:
        if not left:
            return result(call)
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return result(call, error=outcome)

    return script


@dataclass
class Nebula:
    """The queue of one process on the test's database, with ``calls`` in the place of the execution plane."""

    db: Database
    listener: Listener
    calls: Calls
    queue: Queue
    runner: Runner
    endings: Endings
    told: list[tuple[str, str]]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Of a plane that was made without a start: it works now."""
        await self.runner.start()
        try:
            yield
        finally:
            await self.runner.close()

    async def accept(self, payload: bytes = b"{}", function: str = "f", **options: Any) -> str:
        call = CallRequest(new_id(), Scope(), function, payload, IDENTITY, time.monotonic())
        return (await self.queue.accept(call, AsyncOptions(**options))).invocation_id

    async def row(self, job_id: str) -> Row:
        row = await AsyncStore(self.db).get(Scope(), job_id)
        assert row is not None
        return row

    async def ended(self, job_id: str) -> Row:
        """The job when it has ended."""
        return await self.until(job_id, lambda row: row["finished_at"] is not None)

    async def until(self, job_id: str, fits: Callable[[Row], bool]) -> Row:
        async with asyncio.timeout(20):
            while True:
                with suppress(NovaError):  # a test may take the database away
                    if fits(row := await self.row(job_id)):
                        return row
                await asyncio.sleep(0.01)


IDENTITY = Identity("key:test", frozenset({"default"}))


@asynccontextmanager
async def nebula(
    database: Database,
    calls: Calls | None = None,
    *,
    workers: int = 8,
    lease_s: float = 30,
    poll_s: float = 0.2,
    egress: EgressSettings | None = None,
    clock: Clock = SYSTEM_CLOCK,
    start: bool = True,
) -> AsyncIterator[Nebula]:
    calls = calls or Calls()
    told: list[tuple[str, str]] = []
    async with ServiceGroup() as group:
        listener = await group.start(Listener(database.dsn))
        database.on_commit = listener.deliver
        notices = await group.start(Notices(database))
        queue = await group.start(Queue(database, notices))
        invoker = Starting(calls) if STARTS.get() else calls
        jobs = await group.start(AsyncJobs(JobStore(database), invoker, notices, events=_Told(told), clock=clock))
        client = client_of(egress or EgressSettings(allow=["127.0.0.0/8"]), timeout_s=5)
        sender = await group.start(WebhookSender(client, clock))
        runs = Runs(database, notices, Definitions(RunStore(database)))
        deliveries = Deliveries(database, sender, WebhookSecrets(database), runs, events=_Told(told))
        kinds = {"async": jobs.kind(workers), "delivery": deliveries.kind()}
        runner = Runner(database, listener, kinds, lease_s=lease_s, poll_s=poll_s, grace_s=0.5)
        queue.hand_to(Handover(runner.lane("async"), runner.queue.owner, lease_s))
        if start:
            await group.start(runner)
        yield Nebula(database, listener, calls, queue, runner, Endings(listener), told)


class _Told(NoEvents):
    def __init__(self, told: list[tuple[str, str]]) -> None:
        self._told = told

    def job_retried(self, scope: Scope, function: str) -> None:
        self._told.append((function, "retried"))

    def job_ended(self, scope: Scope, function: str, status: str) -> None:
        self._told.append((function, status))

    def delivery_ended(self, scope: Scope, type: str, status: str) -> None:
        self._told.append((type, status))
