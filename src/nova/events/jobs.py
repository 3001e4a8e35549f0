"""Running jobs: work of kind ``async``, handed to an invoker, its outcome written under the lease.

A job may be executed more than once (its worker died, or the answer was lost); its outcome is written once.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import psycopg
import structlog
from msgspec import Struct
from msgspec.structs import replace
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock, rfc3339
from nova.domain.asyncs import JobError, Outcome, backoff_s
from nova.domain.call import CallRequest, CallResult, Trigger, chain_of
from nova.domain.ports import Flight, Invoker, Starter
from nova.errors import NovaError
from nova.events import envelope
from nova.events.acting import acting_for
from nova.events.observers import JobEvents, NoEvents
from nova.events.refusals import HOPELESS, NOT_YET, never_began
from nova.ids import new_id
from nova.service import Background
from nova.store.asyncs import KIND
from nova.store.jobs import Ended, Job, JobStore, PutBack, Written
from nova.work.grouping import GroupCommit
from nova.work.kinds import Room
from nova.work.notices import Notices
from nova.work.queue import LeaseLost, WorkItem, newest
from nova.work.runner import Claimed, Kind

log = structlog.get_logger(__name__)

_NOT_HERE = frozenset({422})
"""What one node has no toolchain for, another may have: an attempt like any other."""
_WAIT_S = (1.0, 60.0)
"""Shortest and longest pause after one of those."""
_WRITERS = 1
_HOLD_S = 0.03
"""Nobody waits for an outcome to be written: what ends within this goes into one transaction,"""
_ENOUGH = 64
"""or so many at once."""
_WAITING = 4
"""Jobs whose outcomes wait to be written, for each that may run: they are done, and only their leases are held."""
_AHEAD = 32
"""Accepted here while all workers are busy: so many wait for a moment, leased, before jobs go through the queue."""
_TIDY_S = 60.0
_SWEEP_AFTER = 4000
"""Jobs whose rows in the queue are rubbish now: two a job, and every claim steps over what lies before it."""
_WRITE_FOR_S = 25.0
"""How long an outcome is tried to be written while PostgreSQL is away; beyond that the lease has run out."""

Outcomes = Ended | PutBack


class _Flying(asyncio.Future[None]):
    """A job under way without a task, until its outcome is written. Cancelled, it stops its call."""

    call: "Flight | asyncio.Task[None] | None" = None

    def cancel(self, msg: Any = None) -> bool:
        if not super().cancel(msg):
            return False
        if self.call is not None:
            self.call.cancel()
        return True


class _Attempt(Struct, frozen=True):
    """One execution, as it is kept with the job."""

    job: Job
    request_id: str
    began: float
    started_at: datetime

    def story(self, now: float, error: JobError | None) -> bytes:
        entry = {
            "no": self.job.recorded + 1,
            "started_at": rfc3339(self.started_at),
            "request_id": self.request_id,
            "error": None if error is None else envelope.error_of(error),
            "duration_ms": round((now - self.began) * 1000, 3),
        }
        return payload.encode([entry])


class AsyncJobs:
    """The handler of work of kind ``async``. ``kind`` makes the row for a :class:`~nova.work.runner.Runner`."""

    def __init__(
        self,
        store: JobStore,
        invoker: Invoker,
        notices: Notices,
        *,
        events: JobEvents | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._invoker = invoker
        self._start_call = invoker.begin if isinstance(invoker, Starter) else None
        self._notices = notices
        self._events = events or NoEvents()
        self._clock = clock
        self._tasks = Background("jobs")
        self._left = 0
        """jobs that ended since the queue was swept"""
        self._rubbish = asyncio.Event()
        self._room = Room()
        self._group: GroupCommit[tuple[WorkItem, Outcomes], None] = GroupCommit(
            "outcomes",
            self._write,
            writers=_WRITERS,
            weigh=lambda item: _weight(item[1]),
            hold_s=_HOLD_S,
            enough=_ENOUGH,
        )

    def kind(self, workers: int | Callable[[], int]) -> Kind:
        """``workers`` jobs run here at once; those whose outcome is being written do not count, up to four times as many."""

        def limit() -> int:
            at_once = workers() if callable(workers) else workers
            return at_once + min(self._group.unanswered, at_once * _WAITING)

        begin = None if self._start_call is None else self.begin
        return Kind(
            self,
            limit,
            max_attempts=None,
            claim=self.claim,
            next_due=self._store.next_due_s,
            begin=begin,
            room=self._room,
            ahead=_AHEAD,
        )

    async def start(self) -> None:
        self._tasks.spawn("tidy", self._tidy())
        self._tasks.spawn("sweep", self._sweep())

    async def close(self) -> None:
        """After the runner: write the outcomes that wait."""
        await self._group.close()
        await self._tasks.close()

    async def _tidy(self) -> None:
        while True:
            await self._clock.sleep(_TIDY_S * random.uniform(0.75, 1.25))
            try:
                if await self._store.tidy():
                    self._notices.work(KIND)
            except NovaError as error:
                log.warning("cannot tidy up the queue", error=error.detail)

    async def _sweep(self) -> None:
        """What a busy minute leaves is too much to wait for the database's own housekeeping."""
        while True:
            await self._rubbish.wait()
            self._rubbish.clear()
            self._left = 0
            try:
                await self._store.sweep()
            except NovaError as error:
                log.warning("the queue cannot be swept", error=error.detail)

    async def claim(self, owner: str, batch: int, lease_s: float) -> Claimed:
        jobs, more = await self._store.claim(owner, batch, lease_s)
        try:
            jobs = await self._store.admit(owner, jobs)
        except NovaError as error:
            log.warning("cannot see whose turn it is", error=error.detail)
            jobs = [job if job.gate is None else replace(job, held=True) for job in jobs]
        return Claimed([item_of(job, owner) for job in jobs], more)

    async def run(self, item: WorkItem) -> None:
        """One attempt. Raises :class:`LeaseLost` when the job was cancelled or taken over meanwhile."""
        job: Job = item.noun
        if job.held:
            await self._put(item, PutBack(job.id, job.fence, 0, forgiven=True, gated=job.gate is not None))
            return
        attempt = _Attempt(job, new_id(), self._clock.monotonic(), self._clock.now())
        if job.age_s > job.max_age_s:
            error = JobError("Nova.Expired", f"the job was not done within {job.max_age_s} s")
            await self._end(item, attempt, "dlq", error=error, executed=False)
        elif job.attempt > job.max_attempts:
            # it took its worker down with it every time: nobody was left to count
            error = JobError("Nova.WorkerLost", f"the worker was lost in the last of {job.max_attempts} attempts")
            await self._end(item, attempt, "dlq", error=error, executed=False)
        else:
            await self._execute(item, attempt)

    def begin(self, item: WorkItem) -> "asyncio.Future[None] | None":
        """One attempt without a task, where its call has to wait for nothing."""
        job: Job = item.noun
        if self._start_call is None or job.held or job.age_s > job.max_age_s or job.attempt > job.max_attempts:
            return None
        attempt = _Attempt(job, new_id(), self._clock.monotonic(), self._clock.now())
        flying = _Flying()
        try:
            flying.call = self._start_call(_call(attempt), partial(self._landed, item, attempt, flying))
        except Exception as error:
            log.debug("a job takes the long way", job=item.id, error=type(error).__name__)
        return None if flying.call is None else flying

    def _landed(self, item: WorkItem, attempt: _Attempt, flying: _Flying, outcome: CallResult | NovaError) -> None:
        """Runs inside the callback that learns it: whatever takes more than a line of the next write is a task."""
        flying.call = None
        if flying.done():
            return
        if isinstance(outcome, CallResult) and outcome.error is None:
            try:
                self._put(item, self._ended(attempt, "succeeded", result=outcome), flying)
            except Exception as error:
                flying.set_exception(error)
            return
        flying.call = asyncio.create_task(self._settle(item, attempt, outcome))
        flying.call.add_done_callback(partial(_pass_on, flying))

    async def give_up(self, item: WorkItem, reason: str) -> None:
        raise AssertionError("jobs count their attempts themselves")

    async def _execute(self, item: WorkItem, attempt: _Attempt) -> None:
        try:
            outcome: CallResult | NovaError = await self._invoker.invoke(_call(attempt))
        except NovaError as refusal:
            outcome = refusal
        except Exception as error:
            log.exception("a job's call failed", job=item.id)
            fault = JobError("Nova.Internal", f"internal error ({type(error).__name__})")
            await self._failed(item, attempt, fault)
            return
        await self._settle(item, attempt, outcome)

    async def _settle(self, item: WorkItem, attempt: _Attempt, outcome: CallResult | NovaError) -> None:
        if isinstance(outcome, NovaError):
            await self._refused(item, attempt, outcome)
        elif outcome.error is None:
            await self._end(item, attempt, "succeeded", result=outcome)
        else:
            failure = JobError(outcome.error.type, outcome.error.message, outcome.error.stack)
            await self._failed(item, attempt, failure, outcome)

    async def _refused(self, item: WorkItem, attempt: _Attempt, refusal: NovaError) -> None:
        error = JobError(f"Nova.{_camel(refusal.code)}", refusal.detail)
        if refusal.status in HOPELESS - _NOT_HERE:
            await self._end(item, attempt, "dlq", error=error)
        elif refusal.status in NOT_YET and never_began(refusal):
            least, most = _WAIT_S
            pause = min(most, max(least, refusal.retry_after_s or 0)) * random.uniform(1, 1.25)
            await self._put(
                item, PutBack(item.id, item.fence, pause, forgiven=True, gated=attempt.job.gate is not None)
            )
        else:
            await self._failed(item, attempt, error)

    async def _failed(
        self, item: WorkItem, attempt: _Attempt, error: JobError, result: CallResult | None = None
    ) -> None:
        job = attempt.job
        if job.attempt >= job.max_attempts:
            await self._end(item, attempt, "dlq", error=error, result=result)
            return
        delay_s = backoff_s(job.backoff_base_ms, job.backoff_max_ms, job.attempt)
        story = attempt.story(self._clock.monotonic(), error)
        back = PutBack(
            job.id, job.fence, delay_s, attempts=story, started_at=attempt.started_at, gated=job.gate is not None
        )
        await self._put(item, back)
        self._events.job_retried(job.scope, job.function)

    async def _end(
        self,
        item: WorkItem,
        attempt: _Attempt,
        status: Outcome,
        *,
        error: JobError | None = None,
        result: CallResult | None = None,
        executed: bool = True,
    ) -> None:
        await self._put(item, self._ended(attempt, status, error=error, result=result, executed=executed))

    def _ended(
        self,
        attempt: _Attempt,
        status: Outcome,
        *,
        error: JobError | None = None,
        result: CallResult | None = None,
        executed: bool = True,
    ) -> Ended:
        job = attempt.job
        ended = Ended(
            id=job.id,
            fence=job.fence,
            status=status,
            attempt=min(job.attempt, job.max_attempts),
            attempts=attempt.story(self._clock.monotonic(), error) if executed else b"[]",
            started_at=attempt.started_at if executed else None,
            request_id=attempt.request_id if executed else None,
            version=None if result is None else result.version,
            output=None if result is None or error is not None else result.output,
            error=None if error is None else payload.encode(envelope.error_of(error)),
            gated=job.gate is not None,
        )
        events = envelope.of_job(job, ended, self._clock)
        return replace(ended, events=events) if events else ended

    def _put(self, item: WorkItem, outcome: Outcomes, answer: _Flying | None = None) -> "asyncio.Future[None]":
        """Have it written; the job does not count among those that run any more."""
        written = self._group.add((item, outcome), answer)
        self._room.set()
        return written

    async def _write(self, batch: Sequence[tuple[WorkItem, Outcomes]]) -> Sequence[BaseException | None]:
        written: frozenset[str] = frozenset()
        # this process may have claimed a job again before its former attempt noticed: only the newer fence writes
        fences = newest((outcome.id, outcome.fence) for _, outcome in batch)
        current = [(item, outcome) for item, outcome in batch if outcome.fence == fences[outcome.id]]
        for owner in {item.owner for item, _ in current}:
            mine = [outcome for item, outcome in current if item.owner == owner]
            try:
                done = await self._persist(owner, mine)
            except psycopg.DataError:
                if len(batch) == 1:
                    raise
                # something that PostgreSQL does not take must not keep the others' outcomes from being written
                return [await self._alone(item) for item in batch]
            written |= done.ids
            if done.moved:
                self._notices.work(KIND)
        self._tell([(item, outcome) for item, outcome in current if outcome.id in written])
        return [
            None if outcome.id in written and outcome.fence == fences[outcome.id] else LeaseLost(outcome.id)
            for _, outcome in batch
        ]

    def _tell(self, written: Sequence[tuple[WorkItem, Outcomes]]) -> None:
        ended = list[str]()
        for item, outcome in written:
            if isinstance(outcome, PutBack):
                self._notices.work(KIND, outcome.delay_s)
                continue
            job: Job = item.noun
            ended.append(outcome.id)
            self._events.job_ended(job.scope, job.function, outcome.status)
            if outcome.events:
                self._notices.work(envelope.KIND)
        if ended:
            self._notices.ended(ended)
            self._left += len(ended)
            if self._left >= _SWEEP_AFTER:
                self._rubbish.set()

    async def _alone(self, item: tuple[WorkItem, Outcomes]) -> BaseException | None:
        try:
            (answer,) = await self._write([item])
        except (psycopg.DataError, NovaError) as error:
            return error
        return answer

    async def _persist(self, owner: str, outcomes: Sequence[Outcomes]) -> Written:
        ordered = sorted(outcomes, key=lambda outcome: outcome.id)
        ended = [o for o in ordered if isinstance(o, Ended)]
        put_back = [o for o in ordered if isinstance(o, PutBack)]
        async for write in AsyncRetrying(
            retry=retry_if_exception(_away),
            wait=wait_exponential(multiplier=0.05, max=2) + wait_random(0, 0.1),
            stop=stop_after_delay(_WRITE_FOR_S),
            reraise=True,
        ):
            with write:
                return await self._store.write(owner, ended, put_back)
        raise AssertionError("unreachable")


def item_of(job: Job, owner: str) -> WorkItem:
    """What a runner is given of a job that ``owner`` holds the lease of."""
    return WorkItem(job.id, KIND, job.scope, job.id, {}, job.attempt, job.fence, owner, noun=job)


def _call(attempt: _Attempt) -> CallRequest:
    """In the scope and under the name of whoever made the job."""
    job = attempt.job
    trigger: Trigger = "schedule" if job.source.startswith("schedule:") else "async"
    return CallRequest(
        request_id=attempt.request_id,
        scope=job.scope,
        function=job.function,
        payload=job.payload,
        identity=acting_for(job.caller, job.scope),
        received=attempt.began,
        qualifier=job.qualifier,
        trigger=trigger,
        traceparent=job.traceparent,
        tracestate=job.tracestate,
        attempt=job.attempt,
        caller=f"async:{job.id}" if job.source == "api" else job.source,
        chain=chain_of(job.source),
        hops=job.depth,
    )


def _pass_on(flying: _Flying, settled: "asyncio.Task[None]") -> None:
    """What became of the task that took over is what became of the job."""
    flying.call = None
    if flying.done():
        return
    if settled.cancelled():
        flying.cancel()
    elif (error := settled.exception()) is not None:
        flying.set_exception(error)
    else:
        flying.set_result(None)


def _away(error: BaseException) -> bool:
    return isinstance(error, NovaError) and error.code == "dependency_unavailable"


def _weight(outcome: Outcomes) -> int:
    if isinstance(outcome, PutBack):
        return len(outcome.attempts)
    return len(outcome.output or b"") + sum(len(event.event) for event in outcome.events)


def _camel(code: str) -> str:
    """``instance_lost`` as errors of functions are named: ``InstanceLost``."""
    return "".join(part.capitalize() for part in code.split("_"))
