"""Asynchronous invocations, the operator's side: looking at jobs and steering them."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nova.domain.asyncs import JobStatus
from nova.domain.identity import Scope
from nova.store import turns
from nova.store.asyncs import DUE, KIND, delete, sql
from nova.store.db import Connection, Database, Row
from nova.store.listen import Channel
from nova.store.work import tell_withdrawn

BATCH = 1000
"""Jobs retried or deleted by one statement."""
_FIRST_ID = "00000000-0000-0000-0000-000000000000"
_IDS_TOLD = 200
"""Ids that fit into one notification (8000 bytes)."""
MAX_BATCHES = 1000
"""Of one request; what is left is told by its total."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What to list; None does not restrict. Times are of acceptance."""

    statuses: tuple[JobStatus, ...] | None = None
    function: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadFilter:
    """Which dead letters; ``functions`` None: of every function. ``since`` is when the job died."""

    functions: tuple[str, ...] | None
    until: datetime | None = None
    since: datetime | None = None
    error_contains: str | None = None


@dataclass(frozen=True, slots=True)
class BulkFilter:
    """Which jobs of ``functions``, whose states as stored are ``statuses``. Times are of acceptance; None does not restrict."""

    functions: tuple[str, ...]
    statuses: tuple[str, ...]
    concurrency_key: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """``queued`` includes what runs and what is held; ``held`` is paused, itself or by its function. Rates per second."""

    queued: int
    running: int
    held: int
    succeeded: int
    dlq: int
    cancelled: int
    oldest_queued_s: float | None
    enqueued_1m: float
    enqueued_5m: float
    finished_1m: float
    finished_5m: float


@dataclass(frozen=True, slots=True)
class Gate:
    paused: bool
    reason: str
    changed_by: str
    changed_at: datetime


class AsyncStore:
    """Changes that others must hear of take the caller's transaction; the caller notifies."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def page(self, scope: Scope, wanted: JobFilter, *, before: str | None, limit: int) -> list[Row]:
        """Jobs without payload, output and attempts, newest first, those before the id ``before``."""
        shared = {
            "tenant": scope.tenant,
            "namespace": scope.namespace,
            "function": wanted.function,
            "before": before,
            "since": wanted.since,
            "until": wanted.until,
            "limit": limit,
        }
        if wanted.statuses == ("dlq",):
            return await self._db.fetch(sql.page_dlq, **shared)
        return await self._db.fetch(
            sql.page, **shared, statuses=None if wanted.statuses is None else list(wanted.statuses)
        )

    async def get(self, scope: Scope, job_id: str) -> Row | None:
        """A whole job; payload and output as JSON text."""
        return await self._db.one(sql.get, id=job_id, tenant=scope.tenant, namespace=scope.namespace)

    async def retry(self, conn: Connection, scope: Scope, ids: Sequence[str], max_attempts: int | None) -> int:
        """Queue dead or cancelled jobs again; how many of these there were."""
        return await conn.run(
            sql.retry, ids=list(ids), tenant=scope.tenant, namespace=scope.namespace, max_attempts=max_attempts
        )

    async def cancel(self, conn: Connection, scope: Scope, ids: Sequence[str]) -> int:
        """End jobs that are queued or run, and tell whoever runs or awaits them; how many had not ended before."""
        cancelled = await conn.fetch(sql.cancel, ids=list(ids), tenant=scope.tenant, namespace=scope.namespace)
        for row in cancelled:
            await tell_withdrawn(conn, KIND, row["id"])
        gone = [row["id"] for row in cancelled]
        for start in range(0, len(gone), _IDS_TOLD):
            await conn.notify(Channel.ASYNC, ",".join(gone[start : start + _IDS_TOLD]))
        if gone and await turns.leave(conn, gone):
            await conn.notify(Channel.WORK, DUE)
        return len(gone)

    async def functions_with(self, scope: Scope, statuses: Sequence[str]) -> list[str]:
        """Names of functions that have jobs of these states, as they are stored: what runs is ``queued``."""
        rows = await self._db.fetch(
            sql.functions_with, tenant=scope.tenant, namespace=scope.namespace, statuses=list(statuses)
        )
        return [row["name"] for row in rows]

    async def cancel_all(self, scope: Scope, wanted: BulkFilter) -> int:
        """End what matches, :data:`BATCH` in one transaction; how many."""
        return await self._each(scope, wanted, lambda conn, ids: self.cancel(conn, scope, ids))

    async def retry_all(self, scope: Scope, wanted: BulkFilter, max_attempts: int | None) -> int:
        """Queue what matches again, :data:`BATCH` in one transaction; how many."""
        return await self._each(scope, wanted, lambda conn, ids: self.retry(conn, scope, ids, max_attempts))

    async def _each(
        self, scope: Scope, wanted: BulkFilter, act: Callable[[Connection, Sequence[str]], Awaitable[int]]
    ) -> int:
        total, after = 0, _FIRST_ID
        for _ in range(MAX_BATCHES):
            async with self._db.transaction() as conn:
                rows = await conn.fetch(
                    sql.matching,
                    tenant=scope.tenant,
                    namespace=scope.namespace,
                    statuses=list(wanted.statuses),
                    functions=list(wanted.functions),
                    concurrency_key=wanted.concurrency_key,
                    since=wanted.since,
                    until=wanted.until,
                    after=after,
                    limit=BATCH,
                )
                total += await act(conn, [row["id"] for row in rows])
            if len(rows) < BATCH:
                break
            after = rows[-1]["id"]
        return total

    async def pause(self, conn: Connection, scope: Scope, job_id: str) -> bool:
        """False: it had ended. One that runs is held when it has to be tried again."""
        return await conn.one(sql.pause, id=job_id, tenant=scope.tenant, namespace=scope.namespace) is not None

    async def resume(self, conn: Connection, scope: Scope, job_id: str) -> bool:
        """False: it had ended."""
        return await conn.one(sql.resume, id=job_id, tenant=scope.tenant, namespace=scope.namespace) is not None

    async def function_paused(self, scope: Scope, function: str) -> bool | None:
        """None: there is no such function."""
        row = await self._db.one(sql.function_paused, tenant=scope.tenant, namespace=scope.namespace, function=function)
        return None if row is None else bool(row["paused"])

    async def pause_function(self, scope: Scope, function: str, by: str) -> int:
        """Hold what is queued and what comes; how many jobs are held by it now that were not before."""
        key = {"tenant": scope.tenant, "namespace": scope.namespace, "function": function}
        await self._db.run(sql.pause_function, **key, by=by)
        # after the pause is committed: what was accepted without seeing it is found here, or when it is claimed
        return await self._db.run(sql.park, **key)

    async def resume_function(self, conn: Connection, scope: Scope, function: str) -> int:
        """How many jobs go on."""
        key = {"tenant": scope.tenant, "namespace": scope.namespace, "function": function}
        await conn.run(sql.resume_function, **key)
        return await conn.run(sql.unpark, **key)

    async def gate(self) -> Gate:
        row = await self._db.one(sql.gate)
        if row is None:
            raise LookupError("async_gate is empty")
        return Gate(**row)

    async def set_gate(self, conn: Connection, *, paused: bool, reason: str, by: str) -> None:
        """Stop or go on with claiming jobs, everywhere. What runs is not touched."""
        await conn.run(sql.set_gate, paused=paused, reason=reason, by=by)

    async def functions_with_dead(self, scope: Scope) -> list[str]:
        rows = await self._db.fetch(sql.functions_with_dead, tenant=scope.tenant, namespace=scope.namespace)
        return [row["name"] for row in rows]

    async def count_dead(self, scope: Scope, wanted: DeadFilter) -> tuple[int, datetime | None]:
        """How many there are, and when that was; what dies later is not to be touched."""
        row = await self._db.one(sql.count_dead, **_dead(scope, wanted))
        return (int(row["total"]), row["moment"]) if row else (0, None)

    async def retry_dead(self, scope: Scope, wanted: DeadFilter, max_attempts: int | None) -> int:
        """Queue dead letters again, :data:`BATCH` in one transaction; how many."""
        return await self._each_batch(scope, wanted, lambda conn, ids: self.retry(conn, scope, ids, max_attempts))

    async def purge_dead(self, scope: Scope, wanted: DeadFilter) -> int:
        """Delete dead letters, :data:`BATCH` in one transaction; how many."""
        return await self._each_batch(scope, wanted, lambda conn, ids: delete(conn, scope, ids))

    async def _each_batch(
        self, scope: Scope, wanted: DeadFilter, act: Callable[[Connection, Sequence[str]], Awaitable[int]]
    ) -> int:
        total = 0
        for _ in range(MAX_BATCHES):
            async with self._db.transaction() as conn:
                rows = await conn.fetch(sql.matching_dead, **_dead(scope, wanted), limit=BATCH)
                total += await act(conn, [row["id"] for row in rows])
            if len(rows) < BATCH:
                break
        return total

    async def summary(self, scope: Scope) -> Summary:
        key = {"tenant": scope.tenant, "namespace": scope.namespace}
        async with self._db.connection() as conn:
            counts = {row["status"]: row["jobs"] for row in await conn.fetch(sql.counts, **key)}
            rates = await conn.one(sql.rates, **key) or {}
            backlog = await conn.one(sql.backlog, **key) or {}
        return Summary(
            queued=counts.get("queued", 0),
            running=backlog["running"],
            held=backlog["held"],
            succeeded=counts.get("succeeded", 0),
            dlq=counts.get("dlq", 0),
            cancelled=counts.get("cancelled", 0),
            oldest_queued_s=backlog["oldest_s"],
            enqueued_1m=rates["enqueued_1m"] / 60,
            enqueued_5m=rates["enqueued_5m"] / 300,
            finished_1m=rates["finished_1m"] / 60,
            finished_5m=rates["finished_5m"] / 300,
        )

    async def totals(self) -> list[tuple[str, str, int]]:
        """Tenant, status and number of jobs, over all tenants."""
        return [(row["tenant"], row["status"], row["jobs"]) for row in await self._db.fetch(sql.totals)]


def _dead(scope: Scope, wanted: DeadFilter) -> dict[str, Any]:
    return {
        "tenant": scope.tenant,
        "namespace": scope.namespace,
        "functions": None if wanted.functions is None else list(wanted.functions),
        "since": wanted.since,
        "until": wanted.until,
        "error_contains": wanted.error_contains,
    }
