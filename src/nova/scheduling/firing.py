"""The duty that makes jobs of functions, and runs of workflows, of schedules that are due.

One process leads. It sleeps until the next instant, then decides about everything that is due in batches, each batch one
transaction: the rows of ``schedule_runs`` (their key is the lock that keeps an instant from firing twice), the jobs and runs,
and where each schedule goes on. So a leader that is killed leaves a whole batch or none of it, and one that was replaced without
noticing is refused by its fence.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

import psycopg
import structlog

from nova.clock import Clock, rfc3339
from nova.errors import NovaError
from nova.scheduling.starting import Start, begin, cancel, fired, start_of
from nova.scheduling.timing import Instant, Plan, plan, timing
from nova.store import schedules as store
from nova.store.asyncs_admin import AsyncStore
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.schedules import Advance, Run, RunStatus, ScheduleRecord

log = structlog.get_logger(__name__)
BATCH = 500
"""Schedules that are decided about in one transaction."""
MAX_QUEUED = 100
"""Runs of one schedule that may wait for the one before them; further instants are skipped."""
QUEUE_POLL_S = 0.2
"""How often it is asked whether a run ended for which another waits."""
LOCKED_S = 0.02
"""What is due and locked by somebody who changes it is looked at again after so long."""
BACKWARDS_S = 2.0
"""A clock that goes back by more than this was wrong before: what was planned by it is planned again."""


class Fence(Protocol):
    """The proof of leading (:class:`nova.work.leader.Fence`)."""

    async def check(self, conn: Connection) -> None: ...


class Notifications(Protocol):
    """What is needed of :class:`nova.store.listen.Listener`."""

    def on(self, channel: str, callback: Callable[[str], None]) -> None: ...

    def on_reconnect(self, callback: Callable[[], None]) -> None: ...


class FiringEvents(Protocol):
    """Who wants to know (metrics). Must not block or raise."""

    def decided(self, status: RunStatus) -> None:
        """About one instant."""
        ...

    def late(self, milliseconds: float) -> None:
        """How long after its time an instant fired."""
        ...


class NoEvents:
    def decided(self, status: RunStatus) -> None:
        pass

    def late(self, milliseconds: float) -> None:
        pass


@dataclass(slots=True)
class _Batch:
    """What one transaction is going to write."""

    now: datetime
    runs: list[Run] = field(default_factory=list)
    starts: dict[tuple[str, datetime], Start] = field(default_factory=dict)
    cancelled: list[ScheduleRecord] = field(default_factory=list)
    plans: dict[str, tuple[ScheduleRecord, Plan]] = field(default_factory=dict)
    lateness: list[float] = field(default_factory=list)
    """in milliseconds, of what fires on time"""


class Firing:
    """:meth:`lead` is the body of the duty. ``lookahead_s`` is how far ahead due schedules are read, in seconds."""

    def __init__(
        self,
        db: Database,
        notifications: Notifications,
        clock: Clock,
        *,
        lookahead_s: float = 1.0,
        events: FiringEvents | None = None,
    ) -> None:
        self._db = db
        self._jobs = AsyncStore(db)
        self._clock = clock
        self._lookahead = timedelta(seconds=lookahead_s)
        self._events = events or NoEvents()
        self._wake = asyncio.Event()
        self._queued = True
        self._mark: tuple[datetime, float] | None = None
        self._caught_up = 0.0
        """when there was nothing due last; monotonic"""
        notifications.on(Channel.SCHEDULES, lambda _: self._wake.set())
        notifications.on_reconnect(self._wake.set)

    async def lead(self, fence: Fence) -> None:
        """Runs until it is cancelled. Raises LeaseLost when another process leads, ``dependency_unavailable``."""
        self._queued, self._mark, self._caught_up = True, None, self._clock.monotonic()
        while True:
            self._wake.clear()
            now = self._clock.now()
            if (since := self._went_back(now)) is not None:
                await self._plan_again(fence, since)
            if self._queued:
                await self._release(fence, now)
            due_at = await store.next_due(self._db, now + self._lookahead)
            if due_at is None or due_at > now:
                self._caught_up = self._clock.monotonic()
            if due_at is None:
                await self._pause(self._lookahead.total_seconds())
            elif due_at > now:
                await self._pause((due_at - self._clock.now()).total_seconds())
            elif not await self._fire(fence, now):
                await self._clock.sleep(LOCKED_S)

    def _went_back(self, now: datetime) -> datetime | None:
        """When the last look was by a clock that has been set back since then; None when it was not."""
        monotonic = self._clock.monotonic()
        before, self._mark = self._mark, (now, monotonic)
        if before is None:
            return None
        passed = timedelta(seconds=monotonic - before[1])
        return now - passed if (now - before[0] - passed).total_seconds() < -BACKWARDS_S else None

    async def _pause(self, seconds: float) -> None:
        """Until the time has come or a schedule was changed."""
        if self._queued:
            seconds = min(seconds, QUEUE_POLL_S)
        if seconds <= 0:
            return
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._wake.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _fire(self, fence: Fence, now: datetime) -> int:
        """Decide about up to :data:`BATCH` schedules that are due; how many there were."""
        try:
            return await self._in_transaction(fence, now, BATCH)
        except (NovaError, psycopg.Error) as exc:
            if isinstance(exc, NovaError) and exc.status >= 500:
                raise
            log.exception("schedules could not be fired together; each goes alone")
        return await self._one_by_one(fence, now)

    async def _in_transaction(self, fence: Fence, now: datetime, limit: int) -> int:
        async with self._db.transaction() as conn:
            await fence.check(conn)
            records = await store.due(conn, now, limit)
            batch = await self._write(conn, records, now)
        self._tell(batch)
        return len(records)

    async def _one_by_one(self, fence: Fence, now: datetime) -> int:
        """A schedule that the database does not take must not keep the others from firing."""
        for done in range(BATCH):
            try:
                if not await self._in_transaction(fence, now, 1):
                    return done
            except (NovaError, psycopg.Error) as exc:
                if isinstance(exc, NovaError) and exc.status >= 500:
                    raise
                log.exception("a schedule could not be fired")
                async with self._db.transaction() as conn:
                    await fence.check(conn)
                    for record in await store.due(conn, now, 1):
                        failed = _failed(record, "the platform could not fire it; its log says why")
                        await self._write_failed(conn, record, failed, now)
                self._events.decided("failed")
        return BATCH

    async def _write(self, conn: Connection, records: Sequence[ScheduleRecord], now: datetime) -> _Batch:
        """Everything about these schedules."""
        batch = _Batch(now)
        busy = await store.unfinished(conn, [r for r in records if r.settings.overlap_policy != "allow"])
        waiting = await store.count_queued(conn, [r.id for r in records if r.settings.overlap_policy == "queue"])
        behind = timedelta(seconds=self._clock.monotonic() - self._caught_up)
        for record in records:
            try:
                planned = plan(record, now, behind)
            except ValueError as exc:  # it was understood when it was written: the zone data of this host differ
                await self._write_failed(conn, record, _failed(record, str(exc)), now)
                continue
            batch.plans[record.id] = (record, planned)
            _decide(batch, record, planned, record.id in busy, waiting.get(record.id, 0))
        taken = await store.claim_runs(conn, batch.runs)
        batch.runs = [run for run in batch.runs if (run.schedule_id, run.scheduled_for) in taken]
        if batch.cancelled:
            await cancel(conn, self._jobs, batch.cancelled)
        await _begin(conn, batch)
        last = {run.schedule_id: run for run in batch.runs}
        ours = {run.schedule_id: run for run in batch.runs if run.status == "fired"}
        await store.advance(
            conn,
            [
                Advance(
                    schedule_id,
                    planned.timing.next_run_at,
                    planned.timing.due_at,
                    fired_at=ours[schedule_id].fired_at if schedule_id in ours else None,
                    status=last[schedule_id].status if schedule_id in last else None,
                    invocation_id=ours[schedule_id].invocation_id if schedule_id in ours else None,
                    run_id=ours[schedule_id].run_id if schedule_id in ours else None,
                )
                for schedule_id, (_, planned) in batch.plans.items()
            ],
        )
        return batch

    async def _write_failed(self, conn: Connection, record: ScheduleRecord, run: Run, now: datetime) -> None:
        """Note that an instant failed, and go on after it if that can be said."""
        await store.claim_runs(conn, [run])
        try:
            ahead = timing(record.id, record.settings, record.anchor, now)
            step = Advance(record.id, ahead.next_run_at, ahead.due_at, status="failed")
        except ValueError:
            step = Advance(record.id, None, None, status="failed")
        await store.advance(conn, [step])

    async def _release(self, fence: Fence, now: datetime) -> None:
        """Let runs that waited for the one before them have their turn."""
        async with self._db.transaction() as conn:
            await fence.check(conn)
            found = await store.released(conn, BATCH)
            batch = _Batch(now)
            for waiting in found:
                _start(batch, waiting.schedule, Instant(waiting.scheduled_for, waiting.catch_up))
            await _begin(conn, batch)
            await store.settle_runs(conn, batch.runs)
            steps = []
            for run, waiting in zip(batch.runs, found, strict=True):
                record = waiting.schedule
                at = (record.next_run_at, record.due_at)
                steps.append(Advance(record.id, *at, run.fired_at, run.status, run.invocation_id, run.run_id))
            if steps:
                await store.advance(conn, steps)
        self._tell(batch)
        self._queued = bool(found) or await store.any_queued(self._db)

    async def _plan_again(self, fence: Fence, since: datetime) -> None:
        """The clock had been ahead: what was planned by it would come too late. No instant fires twice for it."""
        log.warning("the clock went back; schedules are planned again", since=rfc3339(since))
        after: str | None = None
        while True:
            async with self._db.transaction() as conn:
                await fence.check(conn)
                records = await store.ahead(conn, since, after=after, limit=BATCH)
                steps = []
                for record in records:
                    ahead = timing(record.id, record.settings, record.anchor, since)
                    steps.append(Advance(record.id, ahead.next_run_at, ahead.due_at))
                await store.advance(conn, steps)
            if len(records) < BATCH:
                return
            after = records[-1].id

    def _tell(self, batch: _Batch) -> None:
        for run in batch.runs:
            self._events.decided(run.status)
            self._queued = self._queued or run.status == "queued"
        for milliseconds in batch.lateness:
            self._events.late(milliseconds)


def _decide(batch: _Batch, record: ScheduleRecord, planned: Plan, busy: bool, waiting: int) -> None:
    """What becomes of each instant of one schedule, by its overlap policy."""
    if planned.missed is not None:
        batch.runs.append(Run(record.id, planned.missed, "missed", reason=planned.why))
    policy = record.settings.overlap_policy
    waiting_now = waiting
    for place, instant in enumerate(planned.instants):
        if policy == "cancel_previous" and place + 1 < len(planned.instants):
            _note(batch, record, instant, "skipped", "the instant after it fired at once")
        elif policy == "skip" and busy:
            _note(batch, record, instant, "skipped", "the run before it had not ended")
        elif policy == "queue" and (busy or waiting_now):
            if waiting_now < MAX_QUEUED:
                waiting_now += 1
                _note(batch, record, instant, "queued", "waits for the run before it")
            else:
                _note(batch, record, instant, "skipped", f"{MAX_QUEUED} runs wait already")
        else:
            if policy == "cancel_previous" and busy:
                batch.cancelled.append(record)
            _start(batch, record, instant)
            if not instant.catch_up and record.due_at is not None and place == 0:
                batch.lateness.append((batch.now - record.due_at).total_seconds() * 1000)
            busy = True


def _note(batch: _Batch, record: ScheduleRecord, instant: Instant, status: RunStatus, reason: str) -> None:
    batch.runs.append(Run(record.id, instant.at, status, reason=reason, catch_up=instant.catch_up))


def _start(batch: _Batch, record: ScheduleRecord, instant: Instant) -> None:
    start = start_of(record, instant, batch.now)
    batch.starts[record.id, instant.at] = start
    batch.runs.append(fired(record, instant, batch.now, start))


async def _begin(conn: Connection, batch: _Batch) -> None:
    """Make what fires and is ours; an instant whose job or run was refused has failed."""
    ours = [run for run in batch.runs if run.status == "fired"]
    refused = await begin(conn, [batch.starts[run.schedule_id, run.scheduled_for] for run in ours])
    if not refused:
        return
    failed = {
        (run.schedule_id, run.scheduled_for): Run(
            run.schedule_id, run.scheduled_for, "failed", reason=reason, catch_up=run.catch_up
        )
        for run in ours
        if (reason := refused.get(run.invocation_id or run.run_id or ""))
    }
    await store.settle_runs(conn, list(failed.values()))
    batch.runs = [failed.get((run.schedule_id, run.scheduled_for), run) for run in batch.runs]


def _failed(record: ScheduleRecord, reason: str) -> Run:
    return Run(record.id, record.next_run_at or record.anchor, "failed", reason=reason)
