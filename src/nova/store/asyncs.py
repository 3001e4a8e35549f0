"""Asynchronous invocations, the producer's side: a call is accepted when the transaction that adds it has committed.

A job is a row of ``async_invocations`` and, until it has ended, a row of ``work`` with the same id.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from nova.domain.asyncs import MAX_DELAY_S, PRIORITIES, AsyncPolicy
from nova.domain.call import Accepted, AsyncOptions
from nova.domain.identity import Scope
from nova.errors import NovaError, not_found
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries, Row
from nova.store.lines import Prepared
from nova.store.listen import Channel
from nova.store.work import NOBODY, Taker

KIND = "async"
"""Of work."""
DUE = json.dumps({"kind": KIND})
"""What is notified on ``Channel.WORK`` for new jobs."""

sql = Queries("asyncs")
ADD = Prepared.of("nova_add", sql.add)
_DEFAULTS = AsyncPolicy()


class NewJob(Struct, frozen=True):
    """One call to be accepted. ``payload`` is checked JSON; ``function_id`` None: whatever has the name now.

    ``source`` is what called: ``api``, ``schedule:<name>``, ``async:<id>``; ``caller`` the identity's subject. ``depth``
    counts the jobs that caused one another before this one.
    """

    id: str
    scope: Scope
    function: str
    payload: bytes
    options: AsyncOptions
    caller: str
    source: str
    function_id: str | None = None
    qualifier: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    depth: int = 0

    @property
    def realm(self) -> str:
        return f"async/{self.function}"

    @property
    def debounce(self) -> tuple[str, ...] | None:
        """What jobs have in common of which only the last counts; None: this one counts whatever else comes."""
        key = self.options.debounce_key
        return None if key is None else (*self.key[:3], key)

    @property
    def delay_s(self) -> float:
        options = self.options
        return float(options.delay_s if options.debounce_key is None else options.debounce_s)

    @property
    def plain(self) -> bool:
        """Without keys that other jobs may have: one statement accepts it."""
        return self.options.idempotency_key is None and self.options.debounce_key is None

    @property
    def may_be_taken(self) -> bool:
        """Nothing in the request itself makes it wait, or takes more than one statement."""
        return self.plain and not self.options.delay_s and self.options.concurrency_key is None

    @property
    def request_hash(self) -> bytes:
        """Of everything that makes it this request and not another with the same idempotency key."""
        return hashlib.sha256(b"\0".join((self.payload, (self.qualifier or "").encode()))).digest()

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.scope.tenant, self.scope.namespace, self.realm, self.options.idempotency_key or "")


async def enqueue(
    conn: Connection,
    *,
    scope: Scope,
    function_id: str,
    function_name: str,
    qualifier: str | None,
    payload: bytes,
    options: AsyncOptions,
    caller: str,
    traceparent: str | None,
    delay_s: float = 0,
    source: str,
    depth: int = 0,
) -> str:
    """Accept one call in the caller's transaction; the job's id, or that of the job that holds the idempotency key.

    ``delay_s`` comes on top of the options' own. Raises ``not_found`` when the function is gone, ``idempotency_conflict``.
    """
    job = NewJob(
        id=new_id(),
        scope=scope,
        function=function_name,
        function_id=function_id,
        qualifier=qualifier,
        payload=payload,
        options=replace(options, delay_s=options.delay_s + delay_s),
        caller=caller,
        source=source,
        traceparent=traceparent,
        depth=depth,
    )
    (outcome,) = await add(conn, [job])
    if isinstance(outcome, NovaError):
        raise outcome
    if not outcome.replayed:
        await conn.notify(Channel.WORK, DUE)
    return outcome.invocation_id


async def add(conn: Connection, jobs: Sequence[NewJob]) -> list[Accepted | NovaError]:
    """Write jobs in few statements; for each, in order, how it was accepted or why not.

    Whoever calls this inside a transaction notifies ``Channel.WORK`` with :data:`DUE`.
    """
    outcomes, _ = await add_and_take(conn, jobs, NOBODY)
    return outcomes


async def add_and_take(
    conn: Connection, jobs: Sequence[NewJob], taker: Taker
) -> tuple[list[Accepted | NovaError], list[Row]]:
    """As :func:`add`; and rows of those jobs that are leased to ``taker`` as soon as this is committed.

    Those have ``id``, ``function_id``, ``destinations``, ``created_at`` and what the function's policy made of the options.
    """
    outcomes: dict[str, Accepted | NovaError] = {}
    last = {job.debounce: job for job in jobs if job.debounce is not None}
    for _, job in sorted(last.items()):  # in one order, so that two batches cannot wait for each other
        if (holder := await _put_off(conn, job)) is not None:
            outcomes[job.id] = Accepted(holder, "queued")
    asked = jobs
    jobs = [job for job in jobs if job.id not in outcomes and (job.debounce is None or last[job.debounce] is job)]
    keyed = [job for job in jobs if job.options.idempotency_key is not None]
    won = await _take_keys(conn, keyed) if keyed else frozenset[str]()
    fresh = [job for job in jobs if job.options.idempotency_key is None or job.id in won]
    rows = await conn.fetch(sql.add, **_new_rows(fresh, taker)) if fresh else []
    added = frozenset(row["id"] for row in rows)
    if lost := [job for job in fresh if job.id in won and job.id not in added]:
        await _drop_keys(conn, lost)
    outcomes |= {
        job.id: Accepted(job.id, "queued") if job.id in added else not_found("function", job.function) for job in fresh
    }
    for job in fresh:
        if job.debounce is not None and job.id in added:
            await conn.run(sql.hold_debounce, id=job.id, key=job.options.debounce_key)
    if repeated := [job for job in keyed if job.id not in won]:
        outcomes |= await _replays(conn, repeated)
    answers = [outcomes[job.id if job.debounce is None else last[job.debounce].id] for job in asked]
    return answers, [row for row in rows if row["taken"]]


async def add_plain(db: Database, jobs: Sequence[NewJob], taker: Taker) -> tuple[list[Accepted | NovaError], list[Row]]:
    """As :func:`add_and_take`, for jobs that are all :attr:`~NewJob.plain`, in a transaction of its own."""
    rows = await db.quick(ADD, **_new_rows(jobs, taker))
    added = frozenset(row["id"] for row in rows)
    outcomes = [Accepted(job.id, "queued") if job.id in added else not_found("function", job.function) for job in jobs]
    return outcomes, [row for row in rows if row["taken"]]


async def delete(conn: Connection, scope: Scope, ids: Sequence[str]) -> int:
    """Delete finished jobs and free their idempotency keys; how many there were."""
    row = await conn.one(sql.delete, ids=list(ids), tenant=scope.tenant, namespace=scope.namespace)
    return int(row["deleted"]) if row else 0


async def delete_of_function(conn: Connection, scope: Scope, function: str, function_id: str) -> None:
    """Delete the jobs of a function that is deleted in this transaction. One that runs ends, and its outcome is dropped."""
    await conn.run(
        sql.delete_of_function,
        tenant=scope.tenant,
        namespace=scope.namespace,
        function=function,
        function_id=function_id,
    )


async def tidy(db: Database, *, limit: int = 1000) -> None:
    """Once a minute, by anybody: let go on what was held by mistake, and forget rates that nobody asks for any more."""
    await db.run(sql.unpark_stray, limit=limit)
    await db.run(sql.forget_rates)


async def _put_off(conn: Connection, job: NewJob) -> str | None:
    """The job that this one changes, because it has the same debounce key and nobody has taken it; None: it is one of its own."""
    options = job.options
    await conn.one(sql.debounce_turn, realm="\n".join(job.debounce or ()))
    row = await conn.one(
        sql.debounced,
        tenant=job.scope.tenant,
        namespace=job.scope.namespace,
        function=job.function,
        key=options.debounce_key,
    )
    if row is None:
        return None
    holder = str(row["job_id"])
    most_s = MAX_DELAY_S if options.debounce_max_s is None else options.debounce_max_s
    if await conn.one(sql.put_off, id=holder, delay_s=job.delay_s, most_s=float(most_s)) is None:
        return None
    await conn.run(
        sql.change,
        id=holder,
        payload=job.payload.decode(),
        qualifier=job.qualifier,
        caller=job.caller,
        traceparent=job.traceparent,
        tracestate=job.tracestate,
        callback=options.callback_url,
        keep_s=options.keep_s,
    )
    return holder


def _new_rows(jobs: Sequence[NewJob], taker: Taker) -> dict[str, Any]:
    """The parameters of the statement that gives a row for each job whose function is there."""
    takes = [int(job.may_be_taken) for job in jobs]
    if sum(takes) > taker.most:
        seen = accumulate(takes)
        takes = [take if number <= taker.most else 0 for take, number in zip(takes, seen, strict=True)]
    return {
        "ids": [job.id for job in jobs],
        "tenants": [job.scope.tenant for job in jobs],
        "namespaces": [job.scope.namespace for job in jobs],
        "functions": [job.function for job in jobs],
        "function_ids": [job.function_id for job in jobs],
        "qualifiers": [job.qualifier for job in jobs],
        "payloads": [job.payload.decode() for job in jobs],
        "max_attempts": [job.options.max_attempts for job in jobs],
        "backoff_bases": [job.options.backoff_base_ms for job in jobs],
        "backoff_maxes": [job.options.backoff_max_ms for job in jobs],
        "max_ages": [job.options.max_age_s for job in jobs],
        "delays": [job.delay_s for job in jobs],
        "depths": [job.depth for job in jobs],
        "sources": [job.source for job in jobs],
        "callers": [job.caller for job in jobs],
        "traceparents": [job.traceparent for job in jobs],
        "tracestates": [job.tracestate for job in jobs],
        "keys": [job.options.idempotency_key for job in jobs],
        "priorities": [PRIORITIES.index(job.options.priority) for job in jobs],
        "concurrency_keys": [job.options.concurrency_key for job in jobs],
        "concurrency_limits": [job.options.concurrency_limit for job in jobs],
        "callbacks": [job.options.callback_url for job in jobs],
        "keeps": [job.options.keep_s for job in jobs],
        "default_attempts": _DEFAULTS.max_attempts,
        "default_base": _DEFAULTS.backoff_base_ms,
        "default_max": _DEFAULTS.backoff_max_ms,
        "default_age": _DEFAULTS.max_age_s,
        "takes": takes,
        "owner": taker.owner,
        "lease_s": taker.lease_s,
    }


async def _take_keys(conn: Connection, jobs: Sequence[NewJob]) -> frozenset[str]:
    """The ids of the jobs that hold their idempotency keys from now on; of several with one key, the first."""
    first: dict[tuple[str, str, str, str], NewJob] = {}
    for job in jobs:
        first.setdefault(job.key, job)
    wanted = list(first.values())
    rows = await conn.fetch(
        sql.take_keys,
        **_key_columns(wanted),
        hashes=[job.request_hash for job in wanted],
        subjects=[job.id for job in wanted],
        ttls=[job.options.idempotency_ttl_s for job in wanted],
    )
    return frozenset(row["subject"] for row in rows)


async def _drop_keys(conn: Connection, jobs: Sequence[NewJob]) -> None:
    await conn.run(sql.drop_keys, **_key_columns(jobs), subjects=[job.id for job in jobs])


async def _replays(conn: Connection, jobs: Sequence[NewJob]) -> dict[str, Accepted | NovaError]:
    """What those are told whose key another job holds."""
    rows = await conn.fetch(
        sql.held_keys,
        nos=list(range(len(jobs))),
        **_key_columns(jobs),
        hashes=[job.request_hash for job in jobs],
    )
    found: dict[str, Accepted | NovaError] = {}
    for row in rows:
        job = jobs[row["no"]]
        if row["same"]:
            found[job.id] = Accepted(row["id"], row["status"], replayed=True)
        else:
            found[job.id] = NovaError(
                "idempotency_conflict", "this idempotency key was used with another payload or qualifier"
            )
    for job in jobs:  # whoever held the key in this very batch had no function to call, or was deleted in this moment
        found.setdefault(job.id, not_found("function", job.function))
    return found


def _key_columns(jobs: Sequence[NewJob]) -> dict[str, list[str]]:
    keys = [job.key for job in jobs]
    return {
        "tenants": [key[0] for key in keys],
        "namespaces": [key[1] for key in keys],
        "realms": [key[2] for key in keys],
        "keys": [key[3] for key in keys],
    }
