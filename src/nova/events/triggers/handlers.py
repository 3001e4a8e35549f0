"""Handlers of triggers. A config is understood before anything is written; a change reaches whoever runs it at once."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from psycopg.errors import UniqueViolation

from nova.api import triggers as api
from nova.api.table import Empty, Page
from nova.clock import Clock
from nova.domain.filters import compile_filters
from nova.domain.names import is_name
from nova.domain.trigger import MAX_UNDER_WAY, WEBHOOK, OnError, State, TriggerRecord, TriggerSettings, TriggerStatus
from nova.errors import NovaError, invalid, not_found
from nova.events.triggers import registry
from nova.events.triggers.base import SourceError
from nova.events.triggers.context import Contexts
from nova.http import body as bodies
from nova.http import paging
from nova.http.handler import Answer, Req, handles, identifier
from nova.ids import new_id
from nova.payload import encode
from nova.security import access
from nova.store.db import Connection, Database
from nova.store.triggers import TriggerFilter, TriggerStore

_MANAGE = "trigger:manage"
_READ = "trigger:read"
_CALL = {"function": "function:invoke", "workflow": "workflow:invoke", "topic": "event:publish"}
_TEST_S = 10.0
"""How long a source may take to be reached in a test."""
_NEW = TriggerStatus("starting", None, None, 0, 0, 0, None, None)


class TriggerHandlers:
    """Whoever makes or changes a trigger must be allowed to call its target: it acts for them later."""

    def __init__(self, db: Database, triggers: TriggerStore, contexts: Contexts, clock: Clock) -> None:
        self._db = db
        self._triggers = triggers
        self._contexts = contexts
        self._clock = clock

    @handles("trigger.create")
    async def create(self, req: Req[api.TriggerCreate, api.DryRun]) -> Answer:
        body, trigger_id, now = req.body, new_id(), self._clock.now()
        _require_target(req, body)
        await registry.prepare([body.type])
        settings = _settings(body)
        if req.dry_run:
            subject = req.identity.subject
            would_be = TriggerRecord(trigger_id, req.scope, body.type, settings, 1, subject, now, now)
            return Answer(_view(would_be, _NEW), 200)
        async with self._db.transaction() as conn:
            record = await self._triggers.insert(conn, trigger_id, req.scope, body.type, settings, req.identity.subject)
        if record is None:
            raise _taken(settings.name)
        return Answer(_view(record, _NEW), headers={"Location": f"/triggers/{record.id}"})

    @handles("trigger.list")
    async def page(self, req: Req[None, api.TriggerQuery]) -> Page[api.Trigger]:
        """Triggers of the functions that the caller may see: pages are filled up past those of others."""
        query, values = req.query, paging.decode(req.query.cursor, str)
        wanted = TriggerFilter(query.type, query.target, query.enabled)
        before = paging.row_id(str(values[0])) if values else None
        shown: list[TriggerRecord] = []
        while len(shown) <= query.limit:
            found = await self._triggers.page(req.scope, wanted, before=before, limit=query.limit + 1)
            shown += [record for record in found if _allowed(req, record)]
            if len(found) <= query.limit:
                break
            before = found[-1].id
        more = paging.encode([shown[query.limit - 1].id]) if len(shown) > query.limit else None
        return Page[api.Trigger](items=await self._views(shown[: query.limit]), next_cursor=more)

    @handles("trigger.get")
    async def get(self, req: Req[None, Empty]) -> api.Trigger:
        (view,) = await self._views([await self._record(req, _READ)])
        return view

    @handles("trigger.patch")
    async def patch(self, req: Req[api.TriggerPatch, api.DryRun]) -> api.Trigger:
        try:
            async with self._db.transaction() as conn:
                record = await self._locked(conn, req)
                await registry.prepare([record.type])
                body = _merged(record, req.raw_body)
                _require_target(req, body)
                settings = _settings(body)
                if req.dry_run:
                    changed = replace(record, settings=settings)
                else:
                    changed = await self._change(conn, record, settings)
        except UniqueViolation:
            raise _taken(str(req.raw_body.get("name"))) from None
        (view,) = await self._views([changed])
        return view

    @handles("trigger.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        async with self._db.transaction() as conn:
            await self._triggers.delete(conn, await self._locked(conn, req))

    @handles("trigger.status")
    async def status(self, req: Req[None, Empty]) -> api.Status:
        record = await self._record(req, _READ)
        status = (await self._triggers.statuses([record.id])).get(record.id, _NEW)
        return api.Status(
            state=_state(record, status),
            last_error=status.last_error,
            lag=status.lag,
            received=status.received,
            processed=status.processed,
            failed=status.failed,
            last_event_at=status.last_event_at,
            node=status.node,
        )

    @handles("trigger.test")
    async def test(self, req: Req[None, Empty]) -> api.Tested:
        record = await self._record(req, _MANAGE)
        await registry.prepare([record.type])
        try:
            source = registry.source_of(record.type, record.settings.config, self._contexts.of(record))
            async with asyncio.timeout(_TEST_S):
                await source.check()
        except TimeoutError:
            return api.Tested(ok=False, error=f"no answer within {_TEST_S:g} s")
        except (SourceError, OSError) as error:
            return api.Tested(ok=False, error=str(error) or type(error).__name__)
        return api.Tested(ok=True, error=None)

    @handles("trigger.pause")
    async def pause(self, req: Req[None, Empty]) -> api.Trigger:
        return await self._enable(req, False)

    @handles("trigger.resume")
    async def resume(self, req: Req[None, Empty]) -> api.Trigger:
        return await self._enable(req, True)

    async def _enable(self, req: Req[None, Empty], enabled: bool) -> api.Trigger:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            if enabled:
                access.require(req.identity, _CALL[record.settings.target_type], _function(record))
            await registry.prepare([record.type])
            if record.settings.enabled != enabled:
                record = await self._change(conn, record, replace(record.settings, enabled=enabled))
        (view,) = await self._views([record])
        return view

    async def _change(self, conn: Connection, record: TriggerRecord, settings: TriggerSettings) -> TriggerRecord:
        before, after = record.settings.config, settings.config
        elsewhere = any(before.get(name) != after.get(name) for name in registry.place(record.type))
        return await self._triggers.update(conn, record, settings, elsewhere=elsewhere)

    async def _views(self, records: Sequence[TriggerRecord]) -> list[api.Trigger]:
        await registry.prepare(record.type for record in records)
        statuses = await self._triggers.statuses([record.id for record in records]) if records else {}
        return [_view(record, statuses.get(record.id, _NEW)) for record in records]

    async def _record(self, req: Req[Any, Any], permission: str) -> TriggerRecord:
        return _found(req, await self._triggers.get(req.scope, _id_of(req)), permission)

    async def _locked(self, conn: Connection, req: Req[Any, Any]) -> TriggerRecord:
        return _found(req, await self._triggers.lock(conn, req.scope, _id_of(req)), _MANAGE)


def _settings(body: api.TriggerCreate) -> TriggerSettings:
    """Raises ``validation_failed`` for what does not fit together."""
    on_error = body.on_error or _default(body)
    if body.target_type != "topic" and not is_name(body.target):
        raise invalid("target", f"not the name of a {body.target_type}")
    if body.target_type != "function":
        if body.qualifier is not None:
            raise invalid("qualifier", f"a {body.target_type} has no versions to choose from")
        if on_error == "dlq":
            raise invalid("on_error", "the dead-letter queue is for functions: choose retry or drop")
    if body.target_type == "workflow" and body.batch.size > 1:
        raise invalid("batch.size", "each event starts a run of its own")
    if body.batch.size == 1 and body.batch.window_ms > 0:
        raise invalid("batch.window_ms", "needs a batch.size above 1")
    if body.batch.size * body.max_inflight > MAX_UNDER_WAY:
        raise invalid("max_inflight", f"at most {MAX_UNDER_WAY} events may be under way: max_inflight × batch.size")
    compile_filters(body.filters)
    if body.type == WEBHOOK:
        _check_webhook(body, on_error)
    return TriggerSettings(
        name=body.name,
        target_type=body.target_type,
        target=body.target,
        qualifier=body.qualifier,
        enabled=body.enabled,
        config=registry.checked(body.type, body.config),
        filters=body.filters,
        batch_size=body.batch.size,
        batch_window_ms=body.batch.window_ms,
        max_inflight=body.max_inflight,
        on_error=on_error,
        max_attempts=body.max_attempts,
    )


def _check_webhook(body: api.TriggerCreate, on_error: OnError) -> None:
    """Its sender waits for an answer: what is for sources that are read from here does not fit it."""
    if body.batch.size > 1:
        raise invalid("batch.size", "a webhook hands on each request by itself")
    if body.max_inflight != api.TriggerFields.model_fields["max_inflight"].default:
        raise invalid("max_inflight", "is not for webhooks: their senders decide how many come at once")
    if on_error != _default(body):
        raise invalid("on_error", "is not for webhooks: what was stored goes to the dead-letter queue")


def _default(body: api.TriggerFields) -> OnError:
    return "dlq" if body.target_type == "function" else "retry"


def _merged(record: TriggerRecord, patch: dict[str, Any]) -> api.TriggerCreate:
    """A merge patch, checked like a creation."""
    for name in ("name", "target", "config"):
        if patch.get(name, "") is None:
            raise invalid(name, "cannot be taken away")
    settings = record.settings
    current: dict[str, Any] = {
        "name": settings.name,
        "type": record.type,
        "target_type": settings.target_type,
        "target": settings.target,
        "qualifier": settings.qualifier,
        "enabled": settings.enabled,
        "config": dict(settings.config),
        "filters": list(settings.filters),
        "batch": {"size": settings.batch_size, "window_ms": settings.batch_window_ms},
        "max_inflight": settings.max_inflight,
        "max_attempts": settings.max_attempts,
    }
    if "target_type" not in patch:  # another kind of target has another default
        current["on_error"] = settings.on_error
    merged = current | {name: value for name, value in patch.items() if name not in ("config", "batch")}
    if "config" in patch:
        merged["config"] = registry.merged(record.type, settings.config, patch["config"])
    if "batch" in patch:
        merged["batch"] = {**current["batch"], **patch["batch"]} if patch["batch"] is not None else {}
        merged["batch"] = {name: value for name, value in merged["batch"].items() if value is not None}
    return bodies.parse(api.TriggerCreate, encode({k: v for k, v in merged.items() if v is not None}))


def _view(record: TriggerRecord, status: TriggerStatus) -> api.Trigger:
    settings = record.settings
    return api.Trigger(
        id=record.id,
        name=settings.name,
        type=record.type,
        target_type=settings.target_type,
        target=settings.target,
        qualifier=settings.qualifier,
        enabled=settings.enabled,
        config=registry.masked(record.type, settings.config),
        filters=[dict(one) for one in settings.filters],
        batch=api.Batch(size=settings.batch_size, window_ms=settings.batch_window_ms),
        max_inflight=settings.max_inflight,
        on_error=settings.on_error,
        max_attempts=settings.max_attempts,
        state=_state(record, status),
        created_by=record.created_by,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _state(record: TriggerRecord, status: TriggerStatus) -> State:
    """What the process in charge says, if there is one."""
    if not record.settings.enabled:
        return "stopped"
    if record.type == WEBHOOK:
        return "running"
    return "starting" if status.node is None else status.state


def _function(record: TriggerRecord) -> str | None:
    """The function that permissions are checked against."""
    return record.settings.target if record.settings.target_type == "function" else None


def _require_target(req: Req[Any, Any], body: api.TriggerCreate) -> None:
    """To make something that calls a target, one must be allowed to call it, and to manage what calls it."""
    function = body.target if body.target_type == "function" else None
    access.require(req.identity, _MANAGE, function)
    access.require(req.identity, _CALL[body.target_type], function)


def _allowed(req: Req[Any, Any], record: TriggerRecord) -> bool:
    return access.allowed(req.identity, _READ, _function(record))


def _found(req: Req[Any, Any], record: TriggerRecord | None, permission: str) -> TriggerRecord:
    """The trigger, if the caller may know of it."""
    if record is None or not _allowed(req, record):
        raise not_found("trigger", req.params["id"])
    access.require(req.identity, permission, _function(record))
    return record


def _taken(name: str) -> NovaError:
    return NovaError("already_exists", f"there is a trigger {name!r} already")


def _id_of(req: Req[Any, Any]) -> str:
    """A trigger's id; what is none leads nowhere."""
    return identifier("trigger", req.params["id"])
