"""What one instant of a schedule makes: a job of its function, or a run of its workflow."""

import json
from collections.abc import Sequence
from datetime import datetime

from nova.clock import rfc3339
from nova.domain.call import AsyncOptions
from nova.errors import NovaError
from nova.ids import new_id
from nova.payload import encode
from nova.scheduling.timing import Instant
from nova.store import asyncs, workflow_begin, workflow_runs
from nova.store.asyncs import NewJob
from nova.store.asyncs_admin import AsyncStore
from nova.store.db import Connection
from nova.store.listen import Channel
from nova.store.schedules import Run, ScheduleRecord
from nova.store.workflow_begin import NewRun
from nova.store.workflow_signals import tell

Start = NewJob | NewRun
_RUN_DUE = json.dumps({"kind": workflow_runs.KIND})


def start_of(record: ScheduleRecord, instant: Instant, fired_at: datetime, caller: str | None = None) -> Start:
    """In the scope of the schedule, for whoever created it, or for ``caller``."""
    settings = record.settings
    given = settings.input.encode() if settings.input is not None else _envelope(record, instant, fired_at)
    source = f"schedule:{settings.name}"
    if record.target.type == "workflow":
        pinned = settings.qualifier is not None and settings.qualifier.isdigit()
        return NewRun(
            id=new_id(),
            scope=record.scope,
            workflow=record.target.name,
            payload=given,
            caller=caller or record.created_by,
            source=source,
            version=int(settings.qualifier or 0) if pinned else None,
            timeout_s=settings.timeout_s,
        )
    return NewJob(
        id=new_id(),
        scope=record.scope,
        function=record.target.name,
        function_id=record.target.id,
        qualifier=settings.qualifier,
        payload=given,
        options=AsyncOptions(max_attempts=settings.max_attempts),
        caller=caller or record.created_by,
        source=source,
    )


def fired(record: ScheduleRecord, instant: Instant, fired_at: datetime, start: Start, *, reason: str = "") -> Run:
    """The row of the history that leads to what was made."""
    job, run = (None, start.id) if isinstance(start, NewRun) else (start.id, None)
    return Run(
        record.id, instant.at, "fired", fired_at, reason, catch_up=instant.catch_up, invocation_id=job, run_id=run
    )


async def begin(conn: Connection, starts: Sequence[Start]) -> dict[str, str]:
    """Accept jobs and begin runs in this transaction; why not, by the id of each that was refused."""
    refused: dict[str, str] = {}
    jobs = [start for start in starts if isinstance(start, NewJob)]
    if jobs:
        outcomes = await asyncs.add(conn, jobs)
        await conn.notify(Channel.WORK, asyncs.DUE)
        refused |= {
            job.id: answer.detail for job, answer in zip(jobs, outcomes, strict=True) if isinstance(answer, NovaError)
        }
    runs = [start for start in starts if isinstance(start, NewRun)]
    if runs:
        begun = await workflow_begin.begin(conn, runs)
        await conn.notify(Channel.WORK, _RUN_DUE)
        refused |= {
            run.id: answer.detail for run, answer in zip(runs, begun, strict=True) if isinstance(answer, NovaError)
        }
    return refused


async def cancel(conn: Connection, jobs: AsyncStore, records: Sequence[ScheduleRecord]) -> None:
    """End the job or run before, waiting or running; whoever runs it is told."""
    for record in records:
        if record.last_invocation_id is not None:
            await jobs.cancel(conn, record.scope, [record.last_invocation_id])
    told = encode({"reason": "the next instant of its schedule has come", "compensate": True})
    # in one order, as whoever writes runs locks them
    for record in sorted(records, key=lambda record: record.last_run_id or ""):
        if record.last_run_id is None:
            continue
        try:
            sender = f"schedule:{record.settings.name}"
            await tell(conn, record.scope, record.last_run_id, "cancel", payload=told, sender=sender)
        except NovaError as error:
            if error.code not in ("invalid_state", "not_found"):  # it has ended by itself
                raise


def _envelope(record: ScheduleRecord, instant: Instant, fired_at: datetime) -> bytes:
    """A CloudEvents 1.0 object. Source and id together name the instant."""
    return encode(
        {
            "specversion": "1.0",
            "id": rfc3339(instant.at),
            "source": f"/schedules/{record.id}",
            "type": "nova.schedule.fired",
            "subject": record.settings.name,
            "time": rfc3339(fired_at),
            "datacontenttype": "application/json",
            "data": {
                "schedule": record.settings.name,
                "scheduled_at": rfc3339(instant.at),
                "fired_at": rfc3339(fired_at),
                "catch_up": instant.catch_up,
            },
            "novatenant": record.scope.tenant,
        }
    )
