"""Jobs, the consumer's side: claimed in batches with their payloads, ended in batches, each write fenced.

What the claim, the end of a job and its destination write is one transaction each; so a job ends once, and a destination
gets one event for each end, whatever process is killed at whatever moment.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec import Struct

from nova.domain.asyncs import AsyncDestinations, Destination, DestinationType, Outcome
from nova.domain.identity import Scope
from nova.domain.turns import Gate
from nova.store import turns
from nova.store.asyncs import NewJob, tidy
from nova.store.db import Connection, Database, Queries, Row
from nova.store.lines import Prepared

ATTEMPTS_KEPT = 200
"""Of a job that was retried by hand again and again, the last so many attempts are kept."""

sql = Queries("jobs")
_CLAIM = Prepared.of("nova_claim", sql.claim)
END = Prepared.of("nova_end", sql.end)


class Job(Struct, frozen=True):
    """A claimed job. ``attempt`` counts from 1; ``recorded`` is the number of attempts whose story is kept.

    ``age_s`` is measured from when the job was due first, or retried by hand. ``held``: its function was paused in the
    moment of the claim. ``gate`` None: nothing holds it back but room.
    """

    id: str
    scope: Scope
    function_id: str
    function: str
    qualifier: str | None
    payload: bytes
    attempt: int
    fence: int
    max_attempts: int
    backoff_base_ms: int
    backoff_max_ms: int
    max_age_s: int
    depth: int
    generation: int
    source: str
    caller: str
    traceparent: str | None
    tracestate: str | None
    created_at: datetime
    age_s: float
    recorded: int
    destinations: AsyncDestinations
    held: bool
    callback_url: str | None = None
    gate: Gate | None = None


class Ended(Struct, frozen=True):
    """How a job ended. ``output``, ``error`` and ``attempts`` (a list) are JSON."""

    id: str
    fence: int
    status: Outcome
    attempt: int
    attempts: bytes
    started_at: datetime | None
    request_id: str | None = None
    version: int | None = None
    output: bytes | None = None
    error: bytes | None = None
    events: "tuple[OutboxEvent, ...]" = ()
    gated: bool = False


class PutBack(Struct, frozen=True):
    """A job that is to be tried again after ``delay_s``. ``forgiven``: this was no attempt."""

    id: str
    fence: int
    delay_s: float
    forgiven: bool = False
    attempts: bytes = b"[]"
    started_at: datetime | None = None
    gated: bool = False


class Written(Struct, frozen=True):
    """``ids`` of those that were still the owner's. ``moved``: others are due now that waited for their places."""

    ids: frozenset[str]
    moved: bool = False


@dataclass(frozen=True, slots=True)
class OutboxEvent:
    """What is to be sent because a job ended. ``event`` is a CloudEvents 1.0 object as JSON; its id is ``id``."""

    id: str
    scope: Scope
    source: str
    function_id: str
    type: DestinationType
    target: str
    caller: str
    depth: int
    event: bytes


class JobStore:
    """For one owner: an id that is never used twice."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claim(self, owner: str, batch: int, lease_s: float) -> tuple[list[Job], bool]:
        """Up to ``batch`` due jobs, leased to ``owner``; tenants get equal shares. And: may there be more?"""
        rows = await self._db.quick(_CLAIM, owner=owner, batch=batch, lease_s=lease_s)
        if not rows:
            return [], False
        if lost := [row for row in rows if row["lost_at"] is not None]:
            ids, times = [row["id"] for row in lost], [row["lost_at"] for row in lost]
            await self._db.run(sql.tell_lost, ids=ids, lost=times, kept=ATTEMPTS_KEPT)
        share = max(1, batch // rows[0]["lanes"])
        taken = Counter(row["tenant_id"] for row in rows)
        more = rows[0]["lanes"] > batch or max(taken.values()) >= share
        return [_job_of(row) for row in rows], more

    async def next_due_s(self) -> float | None:
        """Seconds until the next job that waits for its time; None: there is none."""
        row = await self._db.one(sql.next_due)
        return None if row is None or row["seconds"] is None else max(0.0, row["seconds"])

    async def tidy(self) -> bool:
        """Once a minute; see :func:`nova.store.asyncs.tidy`. Is something due that was not?"""
        await tidy(self._db)
        return await turns.tidy(self._db)

    async def sweep(self) -> None:
        """Make the room that ended jobs took in the queue free for others. Nothing when somebody else is at it."""
        await self._db.run(sql.sweep)

    async def admit(self, owner: str, jobs: Sequence[Job]) -> list[Job]:
        """Those of the claimed jobs that may run now; the others are back in the queue."""
        gated = [_at_gate(job, job.gate) for job in jobs if job.gate is not None]
        if not gated:
            return list(jobs)
        allowed = await turns.admit(self._db, owner, gated)
        return [job for job in jobs if job.gate is None or job.id in allowed]

    async def write(self, owner: str, ended: Sequence[Ended], put_back: Sequence[PutBack]) -> Written:
        """Write what became of jobs, in one transaction."""
        further = any(end.events or end.gated for end in ended) or any(back.gated for back in put_back)
        if not further and not (ended and put_back):
            if ended:
                rows = await self._db.quick(END, **_ends(owner, ended))
                return Written(frozenset(row["id"] for row in rows))
            async with self._db.connection() as conn:  # one statement is a transaction
                return await _write(conn, owner, ended, put_back)
        async with self._db.transaction() as conn:
            return await _write(conn, owner, ended, put_back)


async def _write(conn: Connection, owner: str, ended: Sequence[Ended], put_back: Sequence[PutBack]) -> Written:
    written: set[str] = set()
    if ended:
        written.update(row["id"] for row in await conn.fetch(sql.end, **_ends(owner, ended)))
        events = [event for end in ended if end.id in written for event in end.events]
        if events:
            await send_on(conn, events)
    if put_back:
        written |= await _put_back(conn, owner, put_back)
    gated = [end.id for end in ended if end.gated] + [back.id for back in put_back if back.gated]
    gated = [job_id for job_id in gated if job_id in written]
    moved = await turns.leave(conn, gated) if gated else False
    return Written(frozenset(written), moved)


def _at_gate(job: Job, gate: Gate) -> turns.Claimed:
    return turns.Claimed(job.id, job.fence, job.scope.tenant, job.scope.namespace, job.function_id, gate)


def _ends(owner: str, ended: Sequence[Ended]) -> dict[str, Any]:
    """The parameters of the statement that ends jobs and gives a row for each that was still the owner's."""
    return {
        "owner": owner,
        "kept": ATTEMPTS_KEPT,
        "ids": [end.id for end in ended],
        "fences": [end.fence for end in ended],
        "statuses": [end.status for end in ended],
        "numbers": [end.attempt for end in ended],
        "request_ids": [end.request_id for end in ended],
        "versions": [end.version for end in ended],
        "outputs": _texts(end.output for end in ended),
        "errors": _texts(end.error for end in ended),
        "attempts": _texts(end.attempts for end in ended),
        "started": [end.started_at for end in ended],
    }


async def _put_back(conn: Connection, owner: str, put_back: Sequence[PutBack]) -> set[str]:
    rows = await conn.fetch(
        sql.put_back,
        owner=owner,
        kept=ATTEMPTS_KEPT,
        ids=[back.id for back in put_back],
        fences=[back.fence for back in put_back],
        delays=[float(back.delay_s) for back in put_back],
        forgiven=[int(back.forgiven) for back in put_back],
        attempts=_texts(back.attempts for back in put_back),
        started=[back.started_at for back in put_back],
    )
    return {row["id"] for row in rows}


async def send_on(conn: Connection, events: Sequence[OutboxEvent]) -> None:
    """Put events into the outbox, each with its work. An event whose source is there already is left out."""
    await conn.run(
        sql.send_on,
        ids=[event.id for event in events],
        tenants=[event.scope.tenant for event in events],
        namespaces=[event.scope.namespace for event in events],
        sources=[event.source for event in events],
        function_ids=[event.function_id for event in events],
        types=[event.type for event in events],
        targets=[event.target for event in events],
        callers=[event.caller for event in events],
        depths=[event.depth for event in events],
        events=_texts(event.event for event in events),
    )


def _texts(values: Iterable[bytes | None]) -> list[str | None]:
    return [None if value is None else value.decode() for value in values]


def _job_of(row: Row) -> Job:
    return Job(
        id=row["id"],
        scope=Scope(row["tenant_id"], row["namespace"]),
        function_id=row["function_id"],
        function=row["function_name"],
        qualifier=row["qualifier"],
        payload=row["payload"].encode(),
        attempt=row["attempt"],
        fence=row["fence"],
        max_attempts=row["max_attempts"],
        backoff_base_ms=row["backoff_base_ms"],
        backoff_max_ms=row["backoff_max_ms"],
        max_age_s=row["max_age_s"],
        depth=row["depth"],
        generation=row["generation"],
        source=row["source"],
        caller=row["caller"],
        traceparent=row["traceparent"],
        tracestate=row["tracestate"],
        created_at=row["created_at"],
        age_s=row["age_s"],
        recorded=row["recorded"],
        destinations=_destinations(row["destinations"]),
        held=row["held"],
        callback_url=row["callback_url"],
        gate=_gate(row),
    )


def taken(new: NewJob, row: Row) -> Job:
    """A job that was leased when it was added; ``row`` is its row of :func:`nova.store.asyncs.add_and_take`."""
    return Job(
        id=new.id,
        scope=new.scope,
        function_id=row["function_id"],
        function=new.function,
        qualifier=new.qualifier,
        payload=new.payload,
        attempt=1,
        fence=1,
        max_attempts=row["max_attempts"],
        backoff_base_ms=row["backoff_base_ms"],
        backoff_max_ms=row["backoff_max_ms"],
        max_age_s=row["max_age_s"],
        depth=new.depth,
        generation=0,
        source=new.source,
        caller=new.caller,
        traceparent=new.traceparent,
        tracestate=new.tracestate,
        created_at=row["created_at"],
        age_s=0.0,
        recorded=0,
        destinations=_destinations(row["destinations"]),
        held=False,
        callback_url=new.options.callback_url,
    )


def _gate(row: Row) -> Gate | None:
    key, most, rate = row["concurrency_key"], row["max_inflight"], row["rate"]
    if key is None and most is None and rate is None:
        return None
    return Gate(key or "", row["concurrency_limit"] or 1, most, rate, row["priority"], row["due"])


_NOWHERE = AsyncDestinations()


def _destinations(stored: Mapping[str, Any] | None) -> AsyncDestinations:
    if not stored:
        return _NOWHERE
    return AsyncDestinations(
        *(
            Destination(found["type"], found["target"]) if (found := stored.get(name)) else None
            for name in ("on_success", "on_failure")
        )
    )
