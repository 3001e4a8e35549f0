"""The routes of asynchronous invocations."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

from pydantic_core import to_json

from nova import payload
from nova.api.asyncs import (
    CancelJobs,
    Cancelled,
    Changed,
    DeadLetters,
    DlqQuery,
    GlobalPause,
    GlobalPauseView,
    Job,
    JobChange,
    JobDetail,
    JobFailure,
    JobQuery,
    Jobs,
    JobSummary,
    Purged,
    Rates,
    Requeued,
    Retried,
    RetryDeadLetters,
    RetryJob,
    RetryJobs,
    ScopeJobQuery,
    WaitQuery,
    WebhookSecret,
)
from nova.api.table import Empty, Page
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.asyncs import PRIORITIES, JobStatus
from nova.errors import NovaError, invalid, not_found
from nova.events.waiting import Endings
from nova.events.webhook_secrets import WebhookSecrets
from nova.http import paging
from nova.http.handler import Req, handles, identifier
from nova.http.sse import Event
from nova.security import access
from nova.store import asyncs
from nova.store.asyncs_admin import AsyncStore, BulkFilter, DeadFilter, JobFilter
from nova.store.db import Database, Row
from nova.store.listen import Channel

_LOOK_S = 2.0
"""A caller who waits for a job looks at the row this often, should a notification be lost."""
_WATCH_S = 0.5
"""So often a job is looked at whose changes somebody watches: only its end is notified."""
_STATUSES = get_args(JobStatus)
_STATES = {
    "queued": "is queued",
    "running": "runs",
    "succeeded": "has ended: succeeded",
    "dlq": "is a dead letter",
    "cancelled": "was cancelled",
}
_ENDED = ("succeeded", "dlq", "cancelled")
_SAME = tuple(name for name in Job.model_fields if name not in {"function", "error", "trace_id", "priority"})


class AsyncHandlers:
    """Serves ``nova.api.asyncs`` but for what brings new calls (:mod:`nova.events.accepting`)."""

    def __init__(
        self,
        db: Database,
        endings: Endings,
        secrets: WebhookSecrets,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._store = AsyncStore(db)
        self._endings = endings
        self._secrets = secrets
        self._clock = clock

    # Looking

    @handles("function.async")
    async def of_function(self, req: Req[Empty, JobQuery]) -> Page[Job]:
        name = req.params["name"]
        if await self._store.function_paused(req.scope, name) is None:
            raise not_found("function", name)
        query = req.query
        wanted = JobFilter(_statuses(query.status), name, query.since, query.until)
        return await self._page(req, wanted)

    @handles("async.list")
    async def list(self, req: Req[Empty, ScopeJobQuery]) -> Page[Job]:
        query = req.query
        return await self._page(req, JobFilter(_statuses(query.status), query.function, query.since, query.until))

    @handles("dlq.list")
    async def dead(self, req: Req[Empty, DlqQuery]) -> Page[Job]:
        query = req.query
        return await self._page(req, JobFilter(("dlq",), query.function, query.since, query.until))

    async def _page(self, req: Req[Any, Any], wanted: JobFilter) -> Page[Job]:
        limit = req.query.limit
        rows = await self._store.page(req.scope, wanted, before=paging.below(req.query.cursor), limit=limit + 1)
        shown = [_job(row) for row in rows[:limit] if _may(req, "async:read", row)]
        return Page[Job](items=shown, next_cursor=paging.encode([rows[limit - 1]["id"]]) if len(rows) > limit else None)

    @handles("async.get")
    async def get(self, req: Req[Empty, WaitQuery]) -> JobDetail:
        job_id = req.params["id"]
        row = await self._readable(req, "async:read")
        until = self._clock.monotonic() + req.query.wait_s
        if req.query.wait_s:
            with self._endings.of(job_id) as ended:
                while row["status"] not in _ENDED and (left := until - self._clock.monotonic()) > 0:
                    row = await self._readable(req, "async:read")
                    if row["status"] in _ENDED:
                        break
                    await _wait(ended, min(left, _LOOK_S))
                    row = await self._readable(req, "async:read")
        return _detail(row, open_to_caller=_may(req, "payload:read", row))

    @handles("async.events")
    async def events(self, req: Req[Empty, Empty]) -> AsyncIterator[Event]:
        row = await self._readable(req, "async:read")
        last: JobChange | None = None
        number = 0
        with self._endings.of(req.params["id"]) as ended:
            while True:
                change = _change(row)
                if change != last:
                    number, last = number + 1, change
                    yield Event(change, "status", str(number))
                if change.status in _ENDED:
                    yield Event({"status": change.status}, "end", str(number + 1))
                    return
                await _wait(ended, _WATCH_S)
                row = await self._readable(req, "async:read")

    @handles("async.summary")
    async def summary(self, req: Req[Empty, Empty]) -> JobSummary:
        found = await self._store.summary(req.scope)
        return JobSummary(
            queued=max(0, found.queued - found.running - found.held),
            held=found.held,
            running=found.running,
            succeeded=found.succeeded,
            dlq=found.dlq,
            cancelled=found.cancelled,
            oldest_queued_s=found.oldest_queued_s,
            rates=Rates(
                enqueued_1m=found.enqueued_1m,
                enqueued_5m=found.enqueued_5m,
                finished_1m=found.finished_1m,
                finished_5m=found.finished_5m,
            ),
        )

    @handles("function.webhook_secret")
    async def webhook_secret(self, req: Req[Empty, Empty]) -> WebhookSecret:
        name = req.params["name"]
        secret = await self._secrets.of_function(req.scope, name)
        if secret is None:
            raise not_found("function", name)
        return WebhookSecret(function=name, secret=secret.text, created_at=secret.created_at)

    # Steering

    @handles("async.retry")
    async def retry(self, req: Req[RetryJob, Empty]) -> Job:
        await self._readable(req, "async:manage")
        async with self._db.transaction() as conn:
            if not await self._store.retry(conn, req.scope, [req.params["id"]], req.body.max_attempts):
                raise await self._wrong_state(req)
            await conn.notify(Channel.WORK, asyncs.DUE)
        return _job(await self._readable(req, "async:manage"))

    @handles("async.pause")
    async def pause(self, req: Req[Empty, Empty]) -> Job:
        await self._readable(req, "async:manage")
        async with self._db.transaction() as conn:
            if not await self._store.pause(conn, req.scope, req.params["id"]):
                raise await self._wrong_state(req)
        return _job(await self._readable(req, "async:manage"))

    @handles("async.resume")
    async def resume(self, req: Req[Empty, Empty]) -> Job:
        await self._readable(req, "async:manage")
        async with self._db.transaction() as conn:
            if not await self._store.resume(conn, req.scope, req.params["id"]):
                raise await self._wrong_state(req)
            await conn.notify(Channel.WORK, asyncs.DUE)
        return _job(await self._readable(req, "async:manage"))

    @handles("async.cancel")
    async def cancel(self, req: Req[Empty, Empty]) -> Job:
        await self._readable(req, "async:manage")
        job_id = req.params["id"]
        async with self._db.transaction() as conn:
            if not await self._store.cancel(conn, req.scope, [job_id]):
                raise await self._wrong_state(req)
        return _job(await self._readable(req, "async:manage"))

    @handles("async.cancel_all")
    async def cancel_all(self, req: Req[CancelJobs, Empty]) -> Cancelled:
        return Cancelled(cancelled=await self._store.cancel_all(req.scope, await self._bulk(req, ("queued",))))

    @handles("async.retry_all")
    async def retry_ended(self, req: Req[RetryJobs, Empty]) -> Requeued:
        wanted = await self._bulk(req, tuple(dict.fromkeys(req.body.status)))
        retried = await self._store.retry_all(req.scope, wanted, req.body.max_attempts)
        async with self._db.transaction() as conn:
            await conn.notify(Channel.WORK, asyncs.DUE)
        return Requeued(retried=retried)

    async def _bulk(self, req: Req[Any, Any], statuses: tuple[str, ...]) -> BulkFilter:
        """Jobs as they are now, of the functions that the caller may manage."""
        body: Jobs = req.body
        allowed = await self._managed(req, body.function, lambda: self._store.functions_with(req.scope, statuses))
        return BulkFilter(allowed, statuses, body.concurrency_key, body.since, body.until)

    @handles("async.delete")
    async def delete(self, req: Req[Empty, Empty]) -> None:
        await self._readable(req, "async:manage")
        async with self._db.transaction() as conn:
            if not await asyncs.delete(conn, req.scope, [req.params["id"]]):
                raise await self._wrong_state(req)

    @handles("async.pause_function")
    async def pause_function(self, req: Req[Empty, Empty]) -> Changed:
        name = await self._known_function(req)
        return Changed(changed=await self._store.pause_function(req.scope, name, req.identity.subject))

    @handles("async.resume_function")
    async def resume_function(self, req: Req[Empty, Empty]) -> Changed:
        name = await self._known_function(req)
        async with self._db.transaction() as conn:
            changed = await self._store.resume_function(conn, req.scope, name)
            await conn.notify(Channel.WORK, asyncs.DUE)
        return Changed(changed=changed)

    @handles("async.gate")
    async def gate(self, _req: Req[Empty, Empty]) -> GlobalPauseView:
        gate = await self._store.gate()
        return GlobalPauseView(
            paused=gate.paused, reason=gate.reason, changed_by=gate.changed_by, changed_at=gate.changed_at
        )

    @handles("async.set_gate")
    async def set_gate(self, req: Req[GlobalPause, Empty]) -> GlobalPauseView:
        async with self._db.transaction() as conn:
            await self._store.set_gate(conn, paused=req.body.paused, reason=req.body.reason, by=req.identity.subject)
            await conn.notify(Channel.WORK, asyncs.DUE)
        gate = await self._store.gate()
        return GlobalPauseView(
            paused=gate.paused, reason=gate.reason, changed_by=gate.changed_by, changed_at=gate.changed_at
        )

    @handles("dlq.retry_all")
    async def retry_all(self, req: Req[RetryDeadLetters, Empty]) -> Retried:
        wanted = await self._dead_filter(req, req.body)
        total, moment = await self._store.count_dead(req.scope, wanted)
        retried = await self._store.retry_dead(req.scope, replace(wanted, until=moment), req.body.max_attempts)
        async with self._db.transaction() as conn:
            await conn.notify(Channel.WORK, asyncs.DUE)
        return Retried(retried=retried, total=total)

    @handles("dlq.purge")
    async def purge(self, req: Req[DeadLetters, Empty]) -> Purged:
        wanted = await self._dead_filter(req, req.body)
        _, moment = await self._store.count_dead(req.scope, wanted)
        return Purged(purged=await self._store.purge_dead(req.scope, replace(wanted, until=moment)))

    async def _dead_filter(self, req: Req[Any, Any], body: DeadLetters) -> DeadFilter:
        """Of the functions that the caller may manage."""
        allowed = await self._managed(req, body.function, lambda: self._store.functions_with_dead(req.scope))
        return DeadFilter(allowed, since=body.since, error_contains=body.error_contains)

    async def _managed(
        self, req: Req[Any, Any], function: str | None, others: Callable[[], Awaitable[Sequence[str]]]
    ) -> tuple[str, ...]:
        """The function that was named, else those of ``others`` that the caller may manage. Raises ``forbidden``."""
        if function is not None:
            access.require(req.identity, "async:manage", function)
            return (function,)
        return tuple(name for name in await others() if access.allowed(req.identity, "async:manage", name))

    async def _known_function(self, req: Req[Any, Any]) -> str:
        name = req.params["name"]
        access.require(req.identity, "async:manage", name)
        if await self._store.function_paused(req.scope, name) is None:
            raise not_found("function", name)
        return name

    async def _readable(self, req: Req[Any, Any], permission: str) -> Row:
        """The job. One of a function that is closed to the caller is as unknown as one that never was."""
        job_id = identifier("asynchronous invocation", req.params["id"])
        row = await self._store.get(req.scope, job_id)
        if row is None or not _may(req, "async:read", row):
            raise not_found("asynchronous invocation", job_id)
        if permission != "async:read":
            access.require(req.identity, permission, row["function_name"])
        return row

    async def _wrong_state(self, req: Req[Any, Any]) -> NovaError:
        row = await self._readable(req, "async:manage")
        return NovaError("invalid_state", f"the job {_STATES[row['status']]}")


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


def _statuses(text: str | None) -> tuple[JobStatus, ...] | None:
    if text is None:
        return None
    wanted = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [part for part in wanted if part not in _STATUSES]:
        raise invalid("status", f"{unknown[0][:32]!r} is none of {', '.join(_STATUSES)}")
    return wanted  # type: ignore[return-value]


def _may(req: Req[Any, Any], permission: str, row: Row) -> bool:
    return access.allowed(req.identity, permission, row["function_name"])


def _common(row: Row) -> dict[str, Any]:
    trace = row["traceparent"]
    return {
        **{name: row[name] for name in _SAME},
        "priority": PRIORITIES[row["priority"]],
        "function": row["function_name"],
        "error": None if row["error"] is None else JobFailure(**row["error"]),
        "trace_id": trace[3:35] if trace else None,
    }


def _change(row: Row) -> JobChange:
    shown = {name: row[name] for name in ("status", "paused", "attempt", "next_run_at")}
    return JobChange(error=None if row["error"] is None else JobFailure(**row["error"]), **shown)


def _job(row: Row) -> Job:
    return Job(**_common(row))


def _detail(row: Row, *, open_to_caller: bool) -> JobDetail:
    shown: dict[str, Any] = {}
    if open_to_caller:
        shown = {name: _value(row[name]) for name in ("payload", "output")}
    return JobDetail(attempts=row["attempts"], **shown, **_common(row))


def _value(text: str | None) -> Any:
    """None too for what is nested deeper than an answer can show."""
    if text is None:
        return None
    try:
        value = payload.decode(text)
        to_json(value)
    except ValueError:
        return None
    return value
