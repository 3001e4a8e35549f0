"""Schedules on a real database, with a clock that tests move and jobs that tests end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from psycopg.types.json import Jsonb

from nova.api import schedules as api
from nova.clock import Clock
from nova.domain.identity import Scope
from nova.ids import new_id
from nova.scheduling.firing import Firing
from nova.scheduling.schedules import ScheduleHandlers
from nova.scheduling.targets import Targets
from nova.scheduling.timing import timing
from nova.service import Background
from nova.store.blobs import BlobStore
from nova.store.db import Connection, Database, Row
from nova.store.functions import FunctionStore
from nova.store.schedules import RunStatus, ScheduleRecord, ScheduleSettings, ScheduleStore, Target
from nova.store.versions import VersionStore
from nova.store.workflows import WorkflowStore
from nova.work.queue import LeaseLost
from tests.http.harness import Api, management

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class HandClock:
    """Stands still until :meth:`move` or :meth:`jump`; sleeping takes real time but shorter."""

    def __init__(self, now: datetime = NOON) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def unix(self) -> float:
        return self._now.timestamp()

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.005))

    def move(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """The wall clock is set; no time passes."""
        self._now += timedelta(seconds=seconds)


class Ears:
    """Stands for the listener: tests call :meth:`tell`."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[str], None]] = []

    def on(self, channel: str, callback: Callable[[str], None]) -> None:
        self._callbacks.append(callback)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        pass

    def tell(self) -> None:
        for callback in self._callbacks:
            callback("")


@dataclass
class Held:
    """A fence that is good until a test says otherwise."""

    lost: bool = False

    @property
    def held(self) -> bool:
        return not self.lost

    async def check(self, conn: Connection) -> None:
        if self.lost:
            raise LeaseLost("schedules")


@dataclass
class Counted:
    """The metrics."""

    statuses: list[RunStatus] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)

    def decided(self, status: RunStatus) -> None:
        self.statuses.append(status)

    def late(self, milliseconds: float) -> None:
        self.lateness.append(milliseconds)


@dataclass
class Stage:
    """A database with function ``f``, and a leader when :meth:`leading` is entered."""

    db: Database
    clock: Clock
    hand: HandClock
    function_id: str
    ears: Ears = field(default_factory=Ears)
    fence: Held = field(default_factory=Held)
    counted: Counted = field(default_factory=Counted)

    async def schedule(self, expression: str = "@every 1s", name: str = "s", **settings: Any) -> ScheduleRecord:
        """A schedule as the API makes it at this moment."""
        values: dict[str, Any] = {
            "timezone": "UTC",
            "input": None,
            "qualifier": None,
            "enabled": True,
            "overlap_policy": "allow",
            "catch_up": "none",
            "catch_up_window_s": 3600,
            "jitter_s": 0,
            "start_at": None,
            "end_at": None,
            "max_attempts": None,
            "timeout_s": None,
        }
        now = self.clock.now()
        made = ScheduleSettings(name=name, cron_expression=expression, **(values | settings))
        schedule_id = new_id()
        async with self.db.transaction() as conn:
            record = await ScheduleStore(self.db).insert(
                conn,
                schedule_id,
                Scope(),
                Target("function", self.function_id, "f"),
                made,
                timing(schedule_id, made, made.start_at or now, now),
                "key:test",
            )
        assert record is not None
        self.ears.tell()
        return record

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        firing = Firing(self.db, self.ears, self.clock, lookahead_s=1.0, events=self.counted)
        tasks = Background("test")
        task = tasks.spawn("lead", firing.lead(self.fence))
        try:
            yield
            assert not task.done(), "the duty ended"
        finally:
            await tasks.close()

    async def runs(self, record: ScheduleRecord) -> list[Row]:
        """The history, oldest first."""
        return await self.db.fetch(
            "SELECT * FROM schedule_runs WHERE schedule_id = %(id)s ORDER BY scheduled_for", id=record.id
        )

    async def jobs(self) -> list[Row]:
        """In the order in which they were accepted."""
        return await self.db.fetch("SELECT * FROM async_invocations ORDER BY created_at, id")

    async def end_jobs(self) -> None:
        """As if everything that waits had run."""
        await self.db.run("DELETE FROM work WHERE kind = 'async'")
        await self.db.run(
            "UPDATE async_invocations SET status = 'succeeded', finished_at = now() WHERE status = 'queued'"
        )

    async def settled(self, record: ScheduleRecord, count: int) -> list[Row]:
        """The history once it has ``count`` rows and no more are being made."""
        async with asyncio.timeout(20):
            while len(found := await self.runs(record)) < count:
                await asyncio.sleep(0.005)
        return found

    async def idle(self) -> None:
        """The leader has nothing left that is due."""
        async with asyncio.timeout(20):
            while await self.db.one("SELECT 1 FROM schedules WHERE due_at <= %(now)s", now=self.clock.now()):
                await asyncio.sleep(0.005)


async def function(db: Database, name: str = "f", scope: Scope = Scope(), live: int | None = 1, **recorded: Any) -> str:
    """A function's row, without versions; its id."""
    function_id = new_id()
    await db.run(
        "INSERT INTO functions (id, tenant_id, namespace, name, data, live_version, etag, created_by)"
        " VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, %(data)s, %(live)s, '', 'test')",
        id=function_id,
        tenant=scope.tenant,
        namespace=scope.namespace,
        name=name,
        data=Jsonb({"recorded": {"max_replicas": 100, **recorded}}),
        live=live,
    )
    return function_id


def seconds(rows: list[Row], status: str | None = None) -> list[float]:
    """When the instants were, in seconds after noon."""
    return [(row["scheduled_for"] - NOON).total_seconds() for row in rows if status in (None, row["status"])]


PATH = "/functions/f/schedules"


@dataclass
class Plane:
    api: Api
    stage: Stage

    @property
    def client(self) -> httpx.AsyncClient:
        return self.api.client

    async def create(self, **members: Any) -> dict[str, Any]:
        answer = await self.client.post(PATH, json={"cron_expression": "0 3 * * *", **members})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        assert answer.headers["Location"] == f"{PATH}/{made['id']}"
        return made

    async def patch(self, made: dict[str, Any], **members: Any) -> dict[str, Any]:
        answer = await self.client.patch(f"/schedules/{made['id']}", json=members)
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


@asynccontextmanager
async def planed(stage: Stage) -> AsyncIterator[Plane]:
    """The API of schedules behind the real door."""
    handlers = ScheduleHandlers(
        stage.db,
        ScheduleStore(stage.db),
        Targets(FunctionStore(stage.db), VersionStore(stage.db, BlobStore(stage.db)), WorkflowStore(stage.db)),
        stage.clock,
    )
    async with management(stage.db, [handlers], api.ROUTES) as running:
        yield Plane(running, stage)
