"""Schedules between the API and the store: what a body says, and what is shown."""

import json
from dataclasses import fields
from datetime import datetime
from typing import Any

from nova.api import schedules as api
from nova.domain import cron
from nova.domain.asyncs import MAX_PAYLOAD
from nova.domain.identity import Scope
from nova.errors import invalid
from nova.http import body as bodies
from nova.payload import too_large
from nova.scheduling.timing import times_of, timing
from nova.store.schedules import RunRecord, ScheduleRecord, ScheduleSettings, Target, TargetType, Timing

_FIELDS = tuple(field.name for field in fields(ScheduleSettings))
_BODIES: dict[TargetType, type[api.ScheduleCreate] | type[api.WorkflowScheduleCreate]] = {
    "function": api.ScheduleCreate,
    "workflow": api.WorkflowScheduleCreate,
}


def settings_of(body: api.ScheduleTimes, name: str) -> ScheduleSettings:
    """Raises ``payload_too_large``."""
    text = None
    if body.input is not None:
        text = json.dumps(body.input, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        if len(text.encode()) > MAX_PAYLOAD:
            raise too_large(MAX_PAYLOAD)
    given = {field: getattr(body, field) for field in type(body).model_fields if field not in ("name", "input")}
    return ScheduleSettings(name=name, input=text, **given)


def merged(kind: TargetType, settings: ScheduleSettings, patch: dict[str, Any]) -> ScheduleSettings:
    """A merge patch, checked like a creation. ``input`` is a value, not a part of the resource: it is replaced."""
    if patch.get("name", "") is None:
        raise invalid("name", "cannot be taken away")
    known = _BODIES[kind].model_fields
    current = {name: getattr(settings, name) for name in known if name != "input"}
    result = {name: value for name, value in current.items() if name not in patch and value is not None}
    if "input" not in patch and settings.input is not None:
        result["input"] = json.loads(settings.input)
    # a null says nothing, unless it is of what this kind has not: then it is refused by its name
    result |= {name: value for name, value in patch.items() if value is not None or name not in known}
    body = bodies.parse(_BODIES[kind], json.dumps(result, default=datetime.isoformat).encode())
    return settings_of(body, body.name or settings.name)


def timing_of(schedule_id: str, settings: ScheduleSettings, anchor: datetime, now: datetime) -> Timing:
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


def would_be(
    schedule_id: str,
    scope: Scope,
    target: Target,
    settings: ScheduleSettings,
    planned: Timing,
    created_by: str,
    now: datetime,
) -> api.Schedule:
    """A schedule that is not written."""
    return view(
        ScheduleRecord(
            id=schedule_id,
            scope=scope,
            target=target,
            settings=settings,
            anchor=planned.anchor,
            next_run_at=planned.next_run_at,
            due_at=planned.due_at,
            last_run_at=None,
            last_status=None,
            last_invocation_id=None,
            last_run_id=None,
            created_by=created_by,
            created_at=now,
            updated_at=now,
        )
    )


def view(record: ScheduleRecord) -> api.Schedule:
    settings = {name: getattr(record.settings, name) for name in _FIELDS if name != "input"}
    return api.Schedule(
        **settings,
        input=None if record.settings.input is None else json.loads(record.settings.input),
        id=record.id,
        target_type=record.target.type,
        target=record.target.name,
        next_run_at=record.next_run_at,
        last_run_at=record.last_run_at,
        last_status=record.last_status,
        created_by=record.created_by,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def run_view(run: RunRecord) -> api.ScheduleRun:
    return api.ScheduleRun(
        scheduled_for=run.scheduled_for,
        fired_at=run.fired_at,
        status=run.status,
        reason=run.reason,
        catch_up=run.catch_up,
        invocation_id=run.invocation_id,
        run_id=run.run_id,
        outcome=run.outcome,
    )
