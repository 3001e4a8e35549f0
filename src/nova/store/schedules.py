"""Schedules in PostgreSQL, of functions and of workflows, and what became of each of their instants.

Whoever changes a schedule notifies :attr:`Channel.SCHEDULES` with its id in that transaction, so that the leader looks again.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Literal

from pydantic import TypeAdapter

from nova.domain.function import Window
from nova.domain.identity import Scope
from nova.domain.windows import replicas_at
from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel

Overlap = Literal["skip", "queue", "allow", "cancel_previous"]
CatchUp = Literal["none", "last", "all"]
RunStatus = Literal["queued", "fired", "skipped", "missed", "failed"]
TargetType = Literal["function", "workflow"]
_sql = Queries("schedules")


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """What may be changed on a schedule. ``input`` is JSON text; None: an envelope that tells of the firing.

    ``max_attempts`` (of functions) None means as the function's ``async_policy`` says, ``timeout_s`` (of workflows) as the
    workflow says. Windows, jitter and times in seconds.
    """

    name: str
    cron_expression: str
    timezone: str
    input: str | None
    qualifier: str | None
    enabled: bool
    overlap_policy: Overlap
    catch_up: CatchUp
    catch_up_window_s: int
    jitter_s: int
    start_at: datetime | None
    end_at: datetime | None
    max_attempts: int | None = None
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a schedule calls."""

    type: TargetType
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Timing:
    """``next_run_at`` is the instant, ``due_at`` the same with its jitter; both None when there is nothing to come.

    ``anchor`` is where intervals are counted from.
    """

    anchor: datetime
    next_run_at: datetime | None
    due_at: datetime | None


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """One schedule. ``last_invocation_id`` is the job that it made last, ``last_run_id`` the run of its workflow."""

    id: str
    scope: Scope
    target: Target
    settings: ScheduleSettings
    anchor: datetime
    next_run_at: datetime | None
    due_at: datetime | None
    last_run_at: datetime | None
    last_status: RunStatus | None
    last_invocation_id: str | None
    last_run_id: str | None
    created_by: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Run:
    """What was decided about one instant. ``fired_at`` is there when a job (``invocation_id``) or a run of a workflow
    (``run_id``) was made of it."""

    schedule_id: str
    scheduled_for: datetime
    status: RunStatus
    fired_at: datetime | None = None
    reason: str = ""
    catch_up: bool = False
    invocation_id: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """``outcome`` is the status of the job or run; None when there is none, or it is not kept any more."""

    scheduled_for: datetime
    status: RunStatus
    fired_at: datetime | None
    reason: str
    catch_up: bool
    invocation_id: str | None
    run_id: str | None
    outcome: str | None


@dataclass(frozen=True, slots=True)
class Advance:
    """Where a schedule goes on, and what its last run was; what is None stays as it is, but for the first two."""

    schedule_id: str
    next_run_at: datetime | None
    due_at: datetime | None
    fired_at: datetime | None = None
    status: RunStatus | None = None
    invocation_id: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued run whose turn has come. ``catch_up``: its instant had been missed."""

    schedule: ScheduleRecord
    scheduled_for: datetime
    catch_up: bool


@dataclass(frozen=True, slots=True)
class ScheduleFilter:
    """What a list may ask for; None does not restrict. ``q`` is text in the name of schedule or target."""

    target: str | None = None
    target_type: TargetType | None = None
    enabled: bool | None = None
    q: str | None = None


class ScheduleStore:
    """What the API reads and writes. Readers take the connection of a running transaction, or one of their own."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, scope: Scope, schedule_id: str) -> ScheduleRecord | None:
        row = await self._db.one(_sql.get, id=schedule_id, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else _record(row)

    async def lock(self, conn: Connection, scope: Scope, schedule_id: str) -> ScheduleRecord | None:
        """The schedule, which does not fire and is not changed by others before the transaction ends."""
        row = await conn.one(_sql.lock, id=schedule_id, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else _record(row)

    async def page(
        self, scope: Scope, wanted: ScheduleFilter, *, after: str | None, limit: int
    ) -> list[ScheduleRecord]:
        """Newest first, beginning after the id ``after``."""
        rows = await self._db.fetch(
            _sql.list, tenant=scope.tenant, namespace=scope.namespace, after=after, limit=limit, **asdict(wanted)
        )
        return [_record(row) for row in rows]

    async def insert(
        self,
        conn: Connection,
        schedule_id: str,
        scope: Scope,
        target: Target,
        settings: ScheduleSettings,
        timing: Timing,
        created_by: str,
    ) -> ScheduleRecord | None:
        """None when the name is taken."""
        row = await conn.one(
            _sql.insert,
            id=schedule_id,
            tenant=scope.tenant,
            namespace=scope.namespace,
            target_type=target.type,
            target=target.name,
            function_id=target.id if target.type == "function" else None,
            workflow_id=target.id if target.type == "workflow" else None,
            created_by=created_by,
            **asdict(settings),
            **asdict(timing),
        )
        await announce(conn, schedule_id)
        return None if row is None else _record(row)

    async def update(
        self, conn: Connection, schedule_id: str, settings: ScheduleSettings, timing: Timing
    ) -> ScheduleRecord:
        """Raises psycopg's UniqueViolation when the new name is taken."""
        row = await conn.one(_sql.update, id=schedule_id, **asdict(settings), **asdict(timing))
        if row is None:
            raise LookupError(schedule_id)
        await announce(conn, schedule_id)
        return _record(row)

    async def delete(self, conn: Connection, scope: Scope, schedule_id: str) -> bool:
        """The schedule with its history."""
        gone = await conn.run(_sql.delete, id=schedule_id, tenant=scope.tenant, namespace=scope.namespace)
        await announce(conn, schedule_id)
        return gone > 0

    async def runs(
        self, schedule_id: str, *, status: str | None = None, before: datetime | None = None, limit: int
    ) -> list[RunRecord]:
        """The history, newest instant first."""
        rows = await self._db.fetch(_sql.runs, id=schedule_id, status=status, before=before, limit=limit)
        return [RunRecord(**row) for row in rows]


async def announce(conn: Connection, schedule_id: str) -> None:
    await conn.notify(Channel.SCHEDULES, schedule_id)


async def drop_queued(conn: Connection, schedule_id: str, reason: str) -> None:
    """The runs that wait for the one before them will not take place."""
    await conn.run(_sql.drop_queued, id=schedule_id, reason=reason)


# What the leader reads and writes, always inside a transaction that its fence has checked.


async def due(conn: Connection, until: datetime, limit: int) -> list[ScheduleRecord]:
    """Schedules of active tenants that are due, the longest first; locked until the transaction ends."""
    return [_record(row) for row in await conn.fetch(_sql.due, until=until, limit=limit)]


async def next_due(db: Database, until: datetime) -> datetime | None:
    """When the next schedule is due, if that is not later than ``until``."""
    row = await db.one(_sql.next_due, until=until)
    return None if row is None else row["due_at"]


async def ahead(conn: Connection, since: datetime, *, after: str | None, limit: int) -> list[ScheduleRecord]:
    """Schedules due later than ``since``, by id, beginning after the id ``after``; locked."""
    return [_record(row) for row in await conn.fetch(_sql.ahead, since=since, after=after, limit=limit)]


async def advance(conn: Connection, steps: Sequence[Advance]) -> None:
    await conn.run(
        _sql.advance,
        ids=[step.schedule_id for step in steps],
        next_run_ats=[step.next_run_at for step in steps],
        due_ats=[step.due_at for step in steps],
        fired_ats=[step.fired_at for step in steps],
        statuses=[step.status for step in steps],
        invocation_ids=[step.invocation_id for step in steps],
        run_ids=[step.run_id for step in steps],
    )


async def claim_runs(conn: Connection, runs: Sequence[Run]) -> set[tuple[str, datetime]]:
    """Write what was decided; the (schedule, instant) pairs that nobody had decided about before."""
    if not runs:
        return set()
    rows = await conn.fetch(_sql.claim_runs, **_columns(runs), catch_ups=[run.catch_up for run in runs])
    return {(str(row["schedule_id"]), row["scheduled_for"]) for row in rows}


async def settle_runs(conn: Connection, runs: Sequence[Run]) -> None:
    """Write again what became of runs that are there."""
    if runs:
        await conn.run(_sql.settle_runs, **_columns(runs))


async def unfinished(conn: Connection, records: Sequence[ScheduleRecord]) -> set[str]:
    """Those of the schedules, by their ids, whose last job or run waits or runs."""
    jobs = {record.last_invocation_id: record.id for record in records if record.last_invocation_id is not None}
    runs = {record.last_run_id: record.id for record in records if record.last_run_id is not None}
    busy = {jobs[row["id"]] for row in await conn.fetch(_sql.unfinished_jobs, ids=list(jobs))} if jobs else set()
    return busy | {runs[row["id"]] for row in await conn.fetch(_sql.unfinished_runs, ids=list(runs))} if runs else busy


async def count_queued(conn: Connection, schedules: Collection[str]) -> dict[str, int]:
    """How many runs of each schedule wait for the one before them."""
    if not schedules:
        return {}
    return {str(row["schedule_id"]): row["waiting"] for row in await conn.fetch(_sql.count_queued, ids=list(schedules))}


async def any_queued(db: Database) -> bool:
    row = await db.one(_sql.any_queued)
    return bool(row and row["waiting"])


async def released(conn: Connection, limit: int) -> list[Waiting]:
    """Queued runs whose predecessor has ended, one of each schedule; locked."""
    rows = await conn.fetch(_sql.released, limit=limit)
    return [Waiting(_record(row), row["scheduled_for"], row["late"]) for row in rows]


@dataclass(frozen=True, slots=True)
class KeptReady:
    """A function that wants instances although nobody calls it: ``least`` always, more while a window is open, and never
    more than ``most`` (0: no bound)."""

    id: str
    scope: Scope
    name: str
    least: int
    most: int
    windows: tuple[Window, ...] = ()

    def replicas(self, now: datetime) -> int:
        """What it wants at this moment."""
        wanted = max(self.least, replicas_at(self.windows, now)) if self.windows else self.least
        return min(wanted, self.most) if self.most else wanted


_windows: TypeAdapter[tuple[Window, ...]] = TypeAdapter(tuple[Window, ...])


async def kept_ready(db: Database, *, after: str | None, limit: int) -> list[KeptReady]:
    """Built functions of active tenants with ``min_replicas`` or windows, by id."""
    rows = await db.fetch(_sql.kept_ready, after=after, limit=limit)
    return [
        KeptReady(
            row["id"],
            Scope(row["tenant_id"], row["namespace"]),
            row["name"],
            row["min_replicas"],
            row["max_replicas"],
            _windows.validate_python(row["provisioned"]),
        )
        for row in rows
    ]


_SETTINGS = tuple(field.name for field in fields(ScheduleSettings))


def _record(row: Row) -> ScheduleRecord:
    return ScheduleRecord(
        id=str(row["id"]),
        scope=Scope(row["tenant_id"], row["namespace"]),
        target=Target(row["target_type"], str(row["workflow_id"] or row["function_id"]), row["target"]),
        settings=ScheduleSettings(**{name: row[name] for name in _SETTINGS}),
        anchor=row["anchor"],
        next_run_at=row["next_run_at"],
        due_at=row["due_at"],
        last_run_at=row["last_run_at"],
        last_status=row["last_status"],
        last_invocation_id=None if row["last_invocation_id"] is None else str(row["last_invocation_id"]),
        last_run_id=None if row["last_run_id"] is None else str(row["last_run_id"]),
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _columns(runs: Sequence[Run]) -> dict[str, list[object]]:
    return {
        "ids": [run.schedule_id for run in runs],
        "scheduled_fors": [run.scheduled_for for run in runs],
        "fired_ats": [run.fired_at for run in runs],
        "statuses": [run.status for run in runs],
        "reasons": [run.reason for run in runs],
        "invocation_ids": [run.invocation_id for run in runs],
        "run_ids": [run.run_id for run in runs],
    }
