"""The port through which calls are accepted that nobody waits for: an answer means that the call is in PostgreSQL."""

import asyncio
from collections.abc import Sequence

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.asyncs import (
    MAX_AGE_S,
    MAX_AT_ONCE,
    MAX_ATTEMPTS,
    MAX_BACKOFF_MS,
    MAX_DELAY_S,
    MAX_KEEP_S,
    MAX_KEY,
    MAX_KEY_TTL_S,
    MAX_PAYLOAD,
    PRIORITIES,
)
from nova.domain.call import Accepted, AsyncOptions, CallRequest
from nova.domain.hosts import is_webhook_url
from nova.domain.names import is_name, is_qualifier
from nova.errors import NovaError, invalid, not_found
from nova.events.jobs import item_of
from nova.events.observers import JobEvents, NoEvents
from nova.ids import new_id
from nova.payload import too_large
from nova.store import asyncs
from nova.store.asyncs import NewJob
from nova.store.db import Database, Row
from nova.store.jobs import taken as job_taken
from nova.store.work import NOBODY, Taker
from nova.work.grouping import GroupCommit
from nova.work.handover import Handover
from nova.work.notices import Notices
from nova.work.queue import WorkItem

_BATCH = 256
_WRITERS = 1
_CROWD_S = 0.008
"""Many callers who wait at once are answered sooner together: a statement costs the same for one job as for many."""


class Queue:
    """Implements :class:`~nova.domain.ports.Acceptor` and :class:`~nova.domain.ports.Entrance`. Requests of one moment share
    a transaction."""

    def __init__(
        self, db: Database, notices: Notices, *, events: JobEvents | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._db = db
        self._notices = notices
        self._events = events or NoEvents()
        self._clock = clock
        self._handover: Handover | None = None
        self._group: GroupCommit[NewJob, Accepted] = GroupCommit(
            "accept",
            self._write,
            batch=_BATCH,
            writers=_WRITERS,
            weigh=lambda job: len(job.payload),
            crowd_s=_CROWD_S,
        )

    def hand_to(self, handover: Handover) -> None:
        """From now on jobs may run here that are accepted here, without a claim."""
        self._handover = handover

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        """Take nothing more; whatever was taken is committed and answered."""
        await self._group.close()

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        """See :class:`~nova.domain.ports.Acceptor`. The payload has been checked to be JSON.

        Raises ``validation_failed``, ``payload_too_large``, ``not_found``, ``idempotency_conflict``, ``queue_full``,
        ``draining`` or ``dependency_unavailable``.
        """
        return await self.enter(call, options)

    def enter(self, call: CallRequest, options: AsyncOptions) -> "asyncio.Future[Accepted]":
        """See :class:`~nova.domain.ports.Entrance`. Raises as :meth:`accept` what can be said at once."""
        _check(call, options)
        job = NewJob(
            id=new_id(),
            scope=call.scope,
            function=call.function,
            payload=call.payload,
            options=options,
            caller=call.identity.subject,
            source=call.caller or "api",
            qualifier=call.qualifier,
            traceparent=call.traceparent,
            tracestate=call.tracestate,
            depth=call.hops,
        )
        return self._group.add(job)

    async def _write(self, jobs: Sequence[NewJob]) -> Sequence[Accepted | BaseException]:
        outcomes = await self._commit(jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, Accepted) and not outcome.replayed:
                self._events.job_accepted(job.scope, job.function)
        return outcomes

    async def _commit(self, jobs: Sequence[NewJob]) -> list[Accepted | NovaError]:
        ready = sum(job.may_be_taken for job in jobs)
        if self._handover is None or not ready:
            outcomes, _ = await self._add(jobs, NOBODY)
            self._tell(jobs, outcomes, frozenset())
            return outcomes
        taker = await self._handover.reserve(ready)
        leased_at, taken = self._clock.monotonic(), list[WorkItem]()
        try:
            outcomes, rows = await self._add(jobs, taker)
            new = {job.id: job for job in jobs} if rows else {}
            taken = [item_of(job_taken(new[row["id"]], row), taker.owner) for row in rows]
        finally:  # callers are answered before their jobs begin
            asyncio.get_running_loop().call_soon(self._handover.take, taker, taken, leased_at)
        self._tell(jobs, outcomes, frozenset(item.id for item in taken))
        return outcomes

    async def _add(self, jobs: Sequence[NewJob], taker: Taker) -> tuple[list[Accepted | NovaError], list[Row]]:
        if all(job.plain for job in jobs):
            return await asyncs.add_plain(self._db, jobs, taker)
        async with self._db.transaction() as conn:
            return await asyncs.add_and_take(conn, jobs, taker)

    def _tell(self, jobs: Sequence[NewJob], outcomes: Sequence[Accepted | NovaError], taken: frozenset[str]) -> None:
        delays = {
            job.delay_s
            for job, outcome in zip(jobs, outcomes, strict=True)
            if isinstance(outcome, Accepted) and not outcome.replayed and job.id not in taken
        }
        for delay_s in delays:
            self._notices.work(asyncs.KIND, delay_s)


def _check(call: CallRequest, options: AsyncOptions) -> None:
    if len(call.payload) > MAX_PAYLOAD:
        raise too_large(MAX_PAYLOAD)
    if not is_name(call.function):
        raise not_found("function", call.function)
    if call.qualifier is not None and not is_qualifier(call.qualifier):
        raise invalid("qualifier", "a version number, an alias, live or $LATEST")
    _within("max_attempts", options.max_attempts, 1, MAX_ATTEMPTS)
    _within("backoff_base_ms", options.backoff_base_ms, 0, MAX_BACKOFF_MS)
    _within("backoff_max_ms", options.backoff_max_ms, 0, MAX_BACKOFF_MS)
    _within("max_age_s", options.max_age_s, 1, MAX_AGE_S)
    _within("delay_s", options.delay_s, 0, MAX_DELAY_S)
    if options.idempotency_key is not None:
        check_key(options.idempotency_key, "idempotency_key")
    _within("idempotency_ttl_s", options.idempotency_ttl_s, 1, MAX_KEY_TTL_S)
    if options.priority not in PRIORITIES:
        raise invalid("priority", f"one of {', '.join(PRIORITIES)}")
    for field in ("concurrency_key", "debounce_key"):
        key = getattr(options, field)
        if key is not None and not (0 < len(key) <= MAX_KEY and all(character >= " " for character in key)):
            raise invalid(field, f"1 to {MAX_KEY} characters without control characters")
    _within("concurrency_limit", options.concurrency_limit, 1, MAX_AT_ONCE)
    _within("debounce_s", options.debounce_s, 0, MAX_DELAY_S)
    _within("debounce_max_s", options.debounce_max_s, 0, MAX_DELAY_S)
    _within("keep_s", options.keep_s, 1, MAX_KEEP_S)
    if options.callback_url is not None and not is_webhook_url(options.callback_url):
        raise invalid("callback_url", "an http or https URL without credentials")


def check_key(key: str, field: str) -> None:
    """Raise ``validation_failed`` unless this can be an idempotency key."""
    if not 0 < len(key) <= MAX_KEY or not all("!" <= character <= "~" for character in key):
        raise invalid(field, f"1 to {MAX_KEY} visible ASCII characters without spaces")


def _within(field: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise invalid(field, f"from {low} to {high}")
