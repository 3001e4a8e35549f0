"""The envelope of what leaves the queue: a CloudEvents 1.0 object whose data tells how a job ended.

The user's payload and output are put in as the bytes they are.
"""

from datetime import datetime
from typing import Any

import msgspec

from nova import payload
from nova.clock import Clock, rfc3339
from nova.domain.asyncs import Destination, JobError
from nova.domain.message import HOPS
from nova.events import cloudevent
from nova.ids import new_id
from nova.store.jobs import Ended, Job, OutboxEvent

KIND = "delivery"
"""Of work that sends one event."""
_TYPES = {"succeeded": "nova.async.succeeded", "dlq": "nova.async.failed"}


def of_job(job: Job, ended: Ended, clock: Clock) -> tuple[OutboxEvent, ...]:
    """What is to be sent because ``job`` ended so: to its function's destination, and to the callback it came with."""
    where = job.destinations
    destination = {"succeeded": where.on_success, "dlq": where.on_failure}.get(ended.status)
    ways = [] if destination is None else [("", destination)]
    if job.callback_url is not None and ended.status in _TYPES:
        ways.append(("/callback", Destination("webhook", job.callback_url)))
    if not ways:
        return ()
    finished_at = clock.now()
    data = _data(job, ended, finished_at)
    return tuple(_event(job, ended, finished_at, data, suffix, way) for suffix, way in ways)


def _event(
    job: Job, ended: Ended, finished_at: datetime, data: bytes, suffix: str, destination: Destination
) -> OutboxEvent:
    event_id = new_id()
    extensions = {
        "novatenant": job.scope.tenant,
        "traceparent": job.traceparent,
        "tracestate": job.tracestate if job.traceparent is not None else None,
        HOPS: str(job.depth) if job.depth else None,
    }
    return OutboxEvent(
        id=event_id,
        scope=job.scope,
        source=f"async/{job.id}/{job.generation}{suffix}",
        function_id=job.function_id,
        type=destination.type,
        target=destination.target,
        caller=job.caller,
        depth=job.depth + 1,
        event=cloudevent.build(
            id=event_id,
            source=f"/functions/{job.function}",
            type=_TYPES[ended.status],
            subject=job.id,
            time=finished_at,
            data=data,
            extensions=extensions,
        ),
    )


def _data(job: Job, ended: Ended, finished_at: datetime) -> bytes:
    return payload.encode(
        {
            "invocation_id": job.id,
            "request_id": ended.request_id,
            "function": job.function,
            "version": ended.version,
            "status": ended.status,
            "attempts": ended.attempt,
            "payload": msgspec.Raw(job.payload),
            "output": None if ended.output is None else msgspec.Raw(ended.output),
            "error": None if ended.error is None else msgspec.Raw(ended.error),
            "created_at": rfc3339(job.created_at),
            "finished_at": rfc3339(finished_at),
        }
    )


def error_of(error: JobError) -> dict[str, Any]:
    """An error as it is stored and sent: without what PostgreSQL cannot hold."""
    return {"type": _clean(error.type), "message": _clean(error.message), "stack": [_clean(s) for s in error.stack]}


def _clean(text: str) -> str:
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
