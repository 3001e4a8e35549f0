"""Handlers of schedules. An expression is understood before anything is written; a change reaches the leader at once."""

import json
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation

from nova.api import schedules as api
from nova.api.table import Empty, Page, PageQuery
from nova.clock import Clock
from nova.domain import cron
from nova.domain.asyncs import MAX_PAYLOAD
from nova.domain.identity import Identity, Scope
from nova.domain.names import LATEST, LIVE
from nova.errors import NovaError, invalid, not_found
from nova.http import body as bodies
from nova.http import paging
from nova.http.handler import Answer, Req, handles, identifier
from nova.ids import new_id
from nova.payload import too_large
from nova.scheduling.firing import enqueue, job_of
from nova.scheduling.timing import Instant, times_of, timing
from nova.security import access
from nova.store import schedules as store
from nova.store.db import Connection, Database
from nova.store.functions import FunctionRecord, FunctionStore
from nova.store.schedules import (
    Advance,
    Run,
    RunRecord,
    ScheduleFilter,
    ScheduleRecord,
    ScheduleSettings,
    ScheduleStore,
    Timing,
)
from nova.store.versions import VersionStore

_MANAGE = "schedule:manage"
_READ = "function:read"
_INVOKE = "function:invoke"
_FIELDS = tuple(field.name for field in fields(ScheduleSettings))


class ScheduleHandlers:
    """Whoever makes or changes a schedule must be allowed to call its function: it acts for them later."""

    def __init__(
        self, db: Database, schedules: ScheduleStore, functions: FunctionStore, versions: VersionStore, clock: Clock
    ) -> None:
        self._db = db
        self._schedules = schedules
        self._functions = functions
        self._versions = versions
        self._clock = clock

    @handles("function.schedule.create")
    async def create(self, req: Req[api.ScheduleCreate, api.DryRun]) -> Answer:
        name = req.params["name"]
        access.require(req.identity, _INVOKE, name)
        schedule_id, now = new_id(), self._clock.now()
        settings = _settings(req.body, req.body.name or f"schedule-{schedule_id[-12:]}")
        async with self._db.transaction() as conn:
            function = await self._functions.lock(conn, req.scope, name)
            if function is None:
                raise not_found("function", name)
            await self._check_qualifier(conn, function, settings.qualifier)
            planned = _timing(schedule_id, settings, settings.start_at or now, now)
            if req.dry_run:
                return Answer(_would_be(schedule_id, req.scope, function, settings, planned, req.identity, now), 200)
            record = await self._schedules.insert(
                conn, schedule_id, req.scope, (function.id, name), settings, planned, req.identity.subject
            )
        if record is None:
            raise _taken(settings.name)
        return Answer(_view(record))

    @handles("function.schedule.list")
    async def list_of_function(self, req: Req[None, PageQuery]) -> Page[api.Schedule]:
        name = req.params["name"]
        if await self._functions.lookup(req.scope, name) is None:
            raise not_found("function", name)
        return await self._page(req, ScheduleFilter(target=name))

    @handles("schedule.list")
    async def list(self, req: Req[None, api.ScheduleQuery]) -> Page[api.Schedule]:
        query = req.query
        return await self._page(req, ScheduleFilter(target=query.target, enabled=query.enabled, q=query.q))

    @handles("function.schedule.get")
    async def get_of_function(self, req: Req[None, Empty]) -> api.Schedule:
        return _view(await self._record(req, _READ))

    @handles("schedule.get")
    async def get(self, req: Req[None, Empty]) -> api.Schedule:
        return _view(await self._record(req, _READ))

    @handles("function.schedule.patch")
    async def patch_of_function(self, req: Req[api.SchedulePatch, api.DryRun]) -> api.Schedule:
        return await self._patch(req)

    @handles("schedule.patch")
    async def patch(self, req: Req[api.SchedulePatch, api.DryRun]) -> api.Schedule:
        return await self._patch(req)

    @handles("function.schedule.delete")
    async def delete_of_function(self, req: Req[None, Empty]) -> None:
        await self._delete(req)

    @handles("schedule.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        await self._delete(req)

    @handles("schedule.run")
    async def run(self, req: Req[None, Empty]) -> api.ScheduleRun:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            access.require(req.identity, _INVOKE, record.target)
            now = self._clock.now()
            job = replace(job_of(record, Instant(now), now), caller=req.identity.subject)
            if refused := await enqueue(conn, [job]):
                raise NovaError("not_found", refused[job.id])
            made = Run(record.id, now, "fired", now, f"run by {req.identity.subject}", invocation_id=job.id)
            await store.claim_runs(conn, [made])
            await store.advance(
                conn, [Advance(record.id, record.next_run_at, record.due_at, now, "fired", invocation_id=job.id)]
            )
        return _run_view(RunRecord(now, "fired", now, made.reason, False, job.id, "queued"))

    @handles("schedule.pause")
    async def pause(self, req: Req[None, Empty]) -> api.Schedule:
        return await self._enable(req, False)

    @handles("schedule.resume")
    async def resume(self, req: Req[None, Empty]) -> api.Schedule:
        return await self._enable(req, True)

    @handles("schedule.runs")
    async def runs(self, req: Req[None, api.RunQuery]) -> Page[api.ScheduleRun]:
        record = await self._record(req, _READ)
        limit, values = req.query.limit, paging.decode(req.query.cursor, str)
        found = await self._schedules.runs(
            record.id, status=req.query.status, before=_moment(values[0]) if values else None, limit=limit + 1
        )
        shown = found[:limit]
        more = paging.encode([shown[-1].scheduled_for.isoformat()]) if len(found) > limit else None
        return Page[api.ScheduleRun](items=[_run_view(run) for run in shown], next_cursor=more)

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
        """Schedules of the functions that the caller may read: pages are filled up past those of others."""
        limit, values = req.query.limit, paging.decode(req.query.cursor, str)
        after = paging.row_id(str(values[0])) if values else None
        shown: list[ScheduleRecord] = []
        while len(shown) <= limit:
            found = await self._schedules.page(req.scope, wanted, after=after, limit=limit + 1)
            shown += [record for record in found if access.allowed(req.identity, _READ, record.target)]
            if len(found) <= limit:
                break
            after = found[-1].id
        more = paging.encode([shown[limit - 1].id]) if len(shown) > limit else None
        return Page[api.Schedule](items=[_view(record) for record in shown[:limit]], next_cursor=more)

    async def _record(self, req: Req[Any, Any], permission: str) -> ScheduleRecord:
        schedule_id = req.params["id"]
        return _found(req, await self._schedules.get(req.scope, identifier("schedule", schedule_id)), permission)

    async def _locked(self, conn: Connection, req: Req[Any, Any]) -> ScheduleRecord:
        schedule_id = req.params["id"]
        return _found(req, await self._schedules.lock(conn, req.scope, identifier("schedule", schedule_id)), _MANAGE)

    async def _patch(self, req: Req[api.SchedulePatch, api.DryRun]) -> api.Schedule:
        try:
            async with self._db.transaction() as conn:
                record = await self._locked(conn, req)
                access.require(req.identity, _INVOKE, record.target)
                settings = _merged(record.settings, req.raw_body)
                if settings.qualifier != record.settings.qualifier:
                    await self._check_target(conn, record, settings.qualifier)
                changed = await self._change(conn, record, settings, dry_run=req.dry_run)
        except UniqueViolation:
            raise _taken(str(req.raw_body.get("name"))) from None
        return _view(changed)

    async def _enable(self, req: Req[None, Empty], enabled: bool) -> api.Schedule:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            if enabled:
                access.require(req.identity, _INVOKE, record.target)
            if record.settings.enabled == enabled:
                return _view(record)
            return _view(await self._change(conn, record, replace(record.settings, enabled=enabled), dry_run=False))

    async def _change(
        self, conn: Connection, record: ScheduleRecord, settings: ScheduleSettings, *, dry_run: bool
    ) -> ScheduleRecord:
        """Write what a schedule is from now on. It goes on from where it was unless its times have changed."""
        now = self._clock.now()
        before = record.settings
        same = all(getattr(before, name) == getattr(settings, name) for name in _WHEN)
        moved = (before.cron_expression, before.start_at) != (settings.cron_expression, settings.start_at)
        anchor = (settings.start_at or now) if moved else record.anchor
        planned = _timing(record.id, settings, anchor, now)
        if same and settings.enabled:
            planned = Timing(record.anchor, record.next_run_at, record.due_at)
        if dry_run:
            return replace(record, settings=settings, next_run_at=planned.next_run_at)
        if not settings.enabled or settings.overlap_policy != before.overlap_policy:
            await store.drop_queued(conn, record.id, "the schedule was paused or its overlap_policy changed")
        return await self._schedules.update(conn, record.id, settings, planned)

    async def _delete(self, req: Req[None, Empty]) -> None:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            await self._schedules.delete(conn, req.scope, record.id)

    async def _check_target(self, conn: Connection, record: ScheduleRecord, qualifier: str | None) -> None:
        function = await self._functions.lookup(record.scope, record.target, conn)
        if function is None:
            raise not_found("function", record.target)
        await self._check_qualifier(conn, function, qualifier)

    async def _check_qualifier(self, conn: Connection, function: FunctionRecord, qualifier: str | None) -> None:
        if qualifier is None or qualifier in (LIVE, LATEST) or qualifier in function.aliases:
            return
        if not qualifier.isdigit() or await self._versions.version(function.id, int(qualifier), conn) is None:
            raise invalid("qualifier", f"function {function.name!r} has no version or alias {qualifier!r}")


_WHEN = ("cron_expression", "timezone", "start_at", "end_at", "enabled", "jitter_s")
"""The settings that say when a schedule is due."""


def _timing(schedule_id: str, settings: ScheduleSettings, anchor: datetime, now: datetime) -> Timing:
    """Raises ``validation_failed`` naming the field."""
    if settings.start_at and settings.end_at and settings.end_at <= settings.start_at:
        raise invalid("end_at", "must be later than start_at")
    try:
        times_of(settings, anchor)
    except cron.CronError as exc:
        raise invalid("cron_expression", str(exc)) from None
    except ValueError as exc:
        raise invalid("timezone", str(exc)) from None
    return timing(schedule_id, settings, anchor, now)


def _settings(body: api.ScheduleFields, name: str) -> ScheduleSettings:
    text = None
    if body.input is not None:
        text = json.dumps(body.input, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        if len(text.encode()) > MAX_PAYLOAD:
            raise too_large(MAX_PAYLOAD)
    given = {field: getattr(body, field) for field in _FIELDS if field not in ("name", "input")}
    return ScheduleSettings(name=name, input=text, **given)


def _merged(settings: ScheduleSettings, patch: dict[str, Any]) -> ScheduleSettings:
    """A merge patch, checked like a creation. ``input`` is a value, not a part of the resource: it is replaced."""
    if patch.get("name", "") is None:
        raise invalid("name", "cannot be taken away")
    current = {name: getattr(settings, name) for name in _FIELDS if name != "input"}
    merged = {name: value for name, value in current.items() if name not in patch and value is not None}
    if "input" not in patch and settings.input is not None:
        merged["input"] = json.loads(settings.input)
    merged |= {name: value for name, value in patch.items() if value is not None}
    body = bodies.parse(api.ScheduleCreate, json.dumps(merged, default=datetime.isoformat).encode())
    return _settings(body, body.name or settings.name)


def _found(req: Req[Any, Any], record: ScheduleRecord | None, permission: str) -> ScheduleRecord:
    """The schedule, if the caller may know of it; under a function's path, only that function's."""
    of_another = record is not None and req.params.get("name", record.target) != record.target
    if record is None or of_another or not access.allowed(req.identity, _READ, record.target):
        raise not_found("schedule", req.params["id"])
    access.require(req.identity, permission, record.target)
    return record


def _would_be(
    schedule_id: str,
    scope: Scope,
    function: FunctionRecord,
    settings: ScheduleSettings,
    planned: Timing,
    identity: Identity,
    now: datetime,
) -> api.Schedule:
    return _view(
        ScheduleRecord(
            id=schedule_id,
            scope=scope,
            target=function.name,
            function_id=function.id,
            settings=settings,
            anchor=planned.anchor,
            next_run_at=planned.next_run_at,
            due_at=planned.due_at,
            last_run_at=None,
            last_status=None,
            last_invocation_id=None,
            created_by=identity.subject,
            created_at=now,
            updated_at=now,
        )
    )


def _view(record: ScheduleRecord) -> api.Schedule:
    settings = {name: getattr(record.settings, name) for name in _FIELDS if name != "input"}
    return api.Schedule(
        **settings,
        input=None if record.settings.input is None else json.loads(record.settings.input),
        id=record.id,
        target=record.target,
        next_run_at=record.next_run_at,
        last_run_at=record.last_run_at,
        last_status=record.last_status,
        created_by=record.created_by,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _run_view(run: RunRecord) -> api.ScheduleRun:
    return api.ScheduleRun(
        scheduled_for=run.scheduled_for,
        fired_at=run.fired_at,
        status=run.status,
        reason=run.reason,
        catch_up=run.catch_up,
        invocation_id=run.invocation_id,
        outcome=run.outcome,
    )


def _taken(name: str) -> NovaError:
    return NovaError("already_exists", f"the function has a schedule {name!r} already")


def _moment(text: object) -> datetime:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise NovaError("invalid_cursor", "take the cursor from next_cursor of the page before")
    return found
