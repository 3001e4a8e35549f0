"""Handlers of schedules. An expression is understood before anything is written; a change reaches the leader at once."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation

from nova.api import schedules as api
from nova.api.table import Empty, Page, PageQuery
from nova.clock import Clock
from nova.domain import cron
from nova.errors import NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles, identifier
from nova.ids import new_id
from nova.scheduling.describing import merged, run_view, settings_of, timing_of, view, would_be
from nova.scheduling.starting import begin, fired, start_of
from nova.scheduling.targets import Targets, may_read, named, require_call
from nova.scheduling.timing import Instant
from nova.security import access
from nova.store import schedules as store
from nova.store.db import Connection, Database
from nova.store.schedules import (
    Advance,
    RunRecord,
    ScheduleFilter,
    ScheduleRecord,
    ScheduleSettings,
    ScheduleStore,
    TargetType,
    Timing,
)

_MANAGE = "schedule:manage"
_WHEN = ("cron_expression", "timezone", "start_at", "end_at", "enabled", "jitter_s")
"""The settings that say when a schedule is due."""


class ScheduleHandlers:
    """Whoever makes or changes a schedule must be allowed to call its target: it acts for them later."""

    def __init__(self, db: Database, schedules: ScheduleStore, targets: Targets, clock: Clock) -> None:
        self._db = db
        self._schedules = schedules
        self._targets = targets
        self._clock = clock

    @handles("function.schedule.create")
    async def create(self, req: Req[api.ScheduleCreate, api.DryRun]) -> Answer:
        return await self._create(req, "function", req.body, req.body.name)

    @handles("workflow.schedule.create")
    async def create_of_workflow(self, req: Req[api.WorkflowScheduleCreate, api.DryRun]) -> Answer:
        return await self._create(req, "workflow", req.body, req.body.name)

    @handles("function.schedule.list")
    async def list_of_function(self, req: Req[None, PageQuery]) -> Page[api.Schedule]:
        return await self._list(req, "function")

    @handles("workflow.schedule.list")
    async def list_of_workflow(self, req: Req[None, PageQuery]) -> Page[api.Schedule]:
        return await self._list(req, "workflow")

    @handles("schedule.list")
    async def list(self, req: Req[None, api.ScheduleQuery]) -> Page[api.Schedule]:
        query = req.query
        wanted = ScheduleFilter(target=query.target, target_type=query.target_type, enabled=query.enabled, q=query.q)
        return await self._page(req, wanted)

    @handles("function.schedule.get")
    async def get_of_function(self, req: Req[None, Empty]) -> api.Schedule:
        return view(await self._record(req, "function"))

    @handles("workflow.schedule.get")
    async def get_of_workflow(self, req: Req[None, Empty]) -> api.Schedule:
        return view(await self._record(req, "workflow"))

    @handles("schedule.get")
    async def get(self, req: Req[None, Empty]) -> api.Schedule:
        return view(await self._record(req))

    @handles("function.schedule.patch")
    async def patch_of_function(self, req: Req[api.SchedulePatch, api.DryRun]) -> api.Schedule:
        return await self._patch(req, "function")

    @handles("workflow.schedule.patch")
    async def patch_of_workflow(self, req: Req[api.SchedulePatch, api.DryRun]) -> api.Schedule:
        return await self._patch(req, "workflow")

    @handles("schedule.patch")
    async def patch(self, req: Req[api.SchedulePatch, api.DryRun]) -> api.Schedule:
        return await self._patch(req)

    @handles("function.schedule.delete")
    async def delete_of_function(self, req: Req[None, Empty]) -> None:
        await self._delete(req, "function")

    @handles("workflow.schedule.delete")
    async def delete_of_workflow(self, req: Req[None, Empty]) -> None:
        await self._delete(req, "workflow")

    @handles("schedule.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        await self._delete(req)

    @handles("schedule.run")
    async def run(self, req: Req[None, Empty]) -> api.ScheduleRun:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            require_call(req.identity, record.target.type, record.target.name)
            now = self._clock.now()
            start = start_of(record, Instant(now), now, req.identity.subject)
            if refused := await begin(conn, [start]):
                raise NovaError("invalid_state", refused[start.id])
            made = fired(record, Instant(now), now, start, reason=f"run by {req.identity.subject}")
            await store.claim_runs(conn, [made])
            at = (record.next_run_at, record.due_at)
            await store.advance(conn, [Advance(record.id, *at, now, "fired", made.invocation_id, made.run_id)])
        outcome = "queued" if made.run_id is None else "pending"
        return run_view(RunRecord(now, "fired", now, made.reason, False, made.invocation_id, made.run_id, outcome))

    @handles("schedule.pause")
    async def pause(self, req: Req[None, Empty]) -> api.Schedule:
        return await self._enable(req, False)

    @handles("schedule.resume")
    async def resume(self, req: Req[None, Empty]) -> api.Schedule:
        return await self._enable(req, True)

    @handles("schedule.runs")
    async def runs(self, req: Req[None, api.RunQuery]) -> Page[api.ScheduleRun]:
        record = await self._record(req)
        limit, values = req.query.limit, paging.decode(req.query.cursor, str)
        found = await self._schedules.runs(
            record.id, status=req.query.status, before=_moment(values[0]) if values else None, limit=limit + 1
        )
        shown = found[:limit]
        more = paging.encode([shown[-1].scheduled_for.isoformat()]) if len(found) > limit else None
        return Page[api.ScheduleRun](items=[run_view(run) for run in shown], next_cursor=more)

    @handles("schedule.preview")
    async def preview(self, req: Req[None, api.PreviewQuery]) -> api.Preview:
        query = req.query
        try:
            instants = cron.preview(query.cron, query.timezone, query.n, query.after or self._clock.now())
        except cron.CronError as exc:
            raise invalid("cron", str(exc)) from None
        except ValueError as exc:
            raise invalid("timezone", str(exc)) from None
        return api.Preview(cron_expression=query.cron, timezone=query.timezone, instants=instants)

    async def _page(self, req: Req[None, Any], wanted: ScheduleFilter) -> Page[api.Schedule]:
        """Schedules of what the caller may read: pages are filled up past those of others."""
        limit, values = req.query.limit, paging.decode(req.query.cursor, str)
        after = paging.row_id(str(values[0])) if values else None
        shown: list[ScheduleRecord] = []
        while len(shown) <= limit:
            found = await self._schedules.page(req.scope, wanted, after=after, limit=limit + 1)
            shown += [record for record in found if may_read(req.identity, record.target)]
            if len(found) <= limit:
                break
            after = found[-1].id
        more = paging.encode([shown[limit - 1].id]) if len(shown) > limit else None
        return Page[api.Schedule](items=[view(record) for record in shown[:limit]], next_cursor=more)

    async def _create(
        self, req: Req[Any, api.DryRun], kind: TargetType, body: api.ScheduleTimes, name: str | None
    ) -> Answer:
        require_call(req.identity, kind, req.params["name"])
        schedule_id, now = new_id(), self._clock.now()
        settings = settings_of(body, name or f"schedule-{schedule_id[-12:]}")
        by = req.identity.subject
        async with self._db.transaction() as conn:
            target = await self._targets.lock(conn, req.scope, kind, req.params["name"], settings.qualifier)
            planned = timing_of(schedule_id, settings, settings.start_at or now, now)
            if req.dry_run:
                return Answer(would_be(schedule_id, req.scope, target, settings, planned, by, now), 200)
            record = await self._schedules.insert(conn, schedule_id, req.scope, target, settings, planned, by)
        if record is None:
            raise _taken(kind, settings.name)
        return Answer(view(record))

    async def _list(self, req: Req[None, PageQuery], kind: TargetType) -> Page[api.Schedule]:
        name = req.params["name"]
        if not await self._targets.exists(req.scope, kind, name):
            raise not_found(kind, name)
        return await self._page(req, ScheduleFilter(target=name, target_type=kind))

    async def _record(self, req: Req[Any, Any], kind: TargetType | None = None) -> ScheduleRecord:
        schedule_id = identifier("schedule", req.params["id"])
        return _found(req, await self._schedules.get(req.scope, schedule_id), kind)

    async def _locked(self, conn: Connection, req: Req[Any, Any], kind: TargetType | None = None) -> ScheduleRecord:
        schedule_id = identifier("schedule", req.params["id"])
        record = _found(req, await self._schedules.lock(conn, req.scope, schedule_id), kind)
        access.require(req.identity, _MANAGE, named(record.target.type, record.target.name))
        return record

    async def _patch(self, req: Req[api.SchedulePatch, api.DryRun], kind: TargetType | None = None) -> api.Schedule:
        target = None
        try:
            async with self._db.transaction() as conn:
                record = await self._locked(conn, req, kind)
                target = record.target
                require_call(req.identity, target.type, target.name)
                settings = merged(target.type, record.settings, req.raw_body)
                if settings.qualifier != record.settings.qualifier:
                    await self._targets.check(conn, record.scope, target, settings.qualifier)
                changed = await self._change(conn, record, settings, dry_run=req.dry_run)
        except UniqueViolation:
            raise _taken(target.type if target else "function", str(req.raw_body.get("name"))) from None
        return view(changed)

    async def _enable(self, req: Req[None, Empty], enabled: bool) -> api.Schedule:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            if enabled:
                require_call(req.identity, record.target.type, record.target.name)
            if record.settings.enabled == enabled:
                return view(record)
            return view(await self._change(conn, record, replace(record.settings, enabled=enabled), dry_run=False))

    async def _change(
        self, conn: Connection, record: ScheduleRecord, settings: ScheduleSettings, *, dry_run: bool
    ) -> ScheduleRecord:
        """Write what a schedule is from now on. It goes on from where it was unless its times have changed."""
        now = self._clock.now()
        before = record.settings
        same = all(getattr(before, name) == getattr(settings, name) for name in _WHEN)
        moved = (before.cron_expression, before.start_at) != (settings.cron_expression, settings.start_at)
        anchor = (settings.start_at or now) if moved else record.anchor
        planned = timing_of(record.id, settings, anchor, now)
        if same and settings.enabled:
            planned = Timing(record.anchor, record.next_run_at, record.due_at)
        if dry_run:
            return replace(record, settings=settings, next_run_at=planned.next_run_at)
        if not settings.enabled or settings.overlap_policy != before.overlap_policy:
            await store.drop_queued(conn, record.id, "the schedule was paused or its overlap_policy changed")
        return await self._schedules.update(conn, record.id, settings, planned)

    async def _delete(self, req: Req[None, Empty], kind: TargetType | None = None) -> None:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req, kind)
            await self._schedules.delete(conn, req.scope, record.id)


def _found(req: Req[Any, Any], record: ScheduleRecord | None, kind: TargetType | None) -> ScheduleRecord:
    """The schedule, if the caller may know of it; under the path of a function or workflow (``kind``), only of that."""
    if (
        record is None
        or (kind is not None and (record.target.type, record.target.name) != (kind, req.params["name"]))
        or not may_read(req.identity, record.target)
    ):
        raise not_found("schedule", req.params["id"])
    return record


def _taken(kind: TargetType, name: str) -> NovaError:
    return NovaError("already_exists", f"the {kind} has a schedule {name!r} already")


def _moment(text: object) -> datetime:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise NovaError("invalid_cursor", "take the cursor from next_cursor of the page before")
    return found
