"""Delivery: how an event of a source reaches its target, and what becomes of one that the target does not take.

An event that is taken at once costs no write to the database. One that is not is tried again from memory, and keeps its place
among those that may be under way, so a target that fails slows its source down.
"""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from nova import payload
from nova.clock import Clock, rfc3339
from nova.domain.asyncs import JobError, backoff_s
from nova.domain.filters import compile_filters
from nova.domain.trigger import State, TriggerRecord
from nova.errors import NovaError
from nova.events.envelope import error_of
from nova.events.triggers.base import SourceEvent, Verdict
from nova.events.triggers.targets import NotTaken, Target, fits
from nova.ids import new_id
from nova.service import Background
from nova.store import triggers as store
from nova.store.db import Database
from nova.store.triggers import DeadLetter, Report
from nova.work.leader import Fence

log = structlog.get_logger(__name__)
BACKOFF_MS = (1_000, 60_000)
"""Pause after the first failed attempt, and the longest."""
_REMEMBERED = 4_096
"""Ids of events that were delivered last: their acknowledgement may have been lost."""
_STORY = 20
"""Attempts that are kept with a dead letter, the last ones."""
MAX_POSITION = 1 << 20


class TriggerEvents(Protocol):
    """Who counts what triggers do (metrics). ``status``: a verdict, or ``retried``, ``accepted`` or ``refused`` (webhooks). Must
    not block or raise."""

    def trigger_event(self, type: str, status: str) -> None: ...


class NoEvents:
    def trigger_event(self, type: str, status: str) -> None:
        pass


@dataclass(slots=True)
class Progress:
    """What a trigger did in this process since it was last reported."""

    trigger_id: str
    state: State = "starting"
    last_error: str | None = None
    lag: int | None = None
    received: int = 0
    processed: int = 0
    failed: int = 0
    last_event_at: datetime | None = None
    changed: bool = True

    def say(self, state: State, error: str | None = None) -> None:
        self.state = state
        if error is not None:
            self.last_error = error[:1000]
        self.changed = True

    def take(self) -> Report:
        """What is to be reported now; the counts begin anew."""
        report = Report(
            self.trigger_id,
            self.state,
            self.last_error,
            self.lag,
            self.received,
            self.processed,
            self.failed,
            self.last_event_at,
        )
        self.received = self.processed = self.failed = 0
        self.changed = False
        return report

    def put_back(self, report: Report) -> None:
        """It could not be reported."""
        self.received += report.received
        self.processed += report.processed
        self.failed += report.failed
        self.changed = True


class Turns:
    """One at a time for each key, in the order in which they asked."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        line = self._waiting.get(key)
        if line is None:
            self._waiting[key] = deque()
        else:
            mine = asyncio.get_running_loop().create_future()
            line.append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._next(key)
                raise
        try:
            yield
        finally:
            self._next(key)

    def _next(self, key: str) -> None:
        line = self._waiting[key]
        while line:
            following = line.popleft()
            if not following.done():
                following.set_result(None)
                return
        del self._waiting[key]


@dataclass(slots=True)
class _Tries:
    """What was tried for one event, or one batch."""

    max_attempts: int | None
    """None: without end"""
    began: datetime
    attempts: int = 0
    pause_s: float = 0.0
    error: JobError = field(default_factory=lambda: JobError("Nova.Internal", ""))
    hopeless: bool = False
    request_id: str = ""
    story: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_STORY))

    @property
    def over(self) -> bool:
        return self.max_attempts is not None and (self.hopeless or self.attempts >= self.max_attempts)

    def failed(self, failure: NotTaken, request_id: str, started_at: datetime, took_s: float) -> None:
        self.error, self.request_id = failure.error, request_id
        if not failure.counts:
            self.pause_s = max(1.0, min(failure.retry_after_s, 60.0)) * random.uniform(1, 1.25)
            return
        self.attempts += 1
        self.hopeless = failure.hopeless
        self.pause_s = 0.0 if self.over else backoff_s(*BACKOFF_MS, self.attempts)
        self.story.append(
            {
                "no": self.attempts,
                "started_at": rfc3339(started_at),
                "request_id": request_id,
                "error": error_of(failure.error),
                "duration_ms": round(took_s * 1000, 3),
            }
        )

    def wait(self, _state: RetryCallState) -> float:
        return self.pause_s


class Delivery:
    """Implements :class:`~nova.events.triggers.base.Sink` for one term of one trigger."""

    def __init__(
        self,
        record: TriggerRecord,
        target: Target,
        progress: Progress,
        fence: Fence,
        db: Database,
        clock: Clock,
        events: TriggerEvents,
    ) -> None:
        settings = record.settings
        self._record = record
        self._target = target
        self._progress = progress
        self._fence = fence
        self._db = db
        self._clock = clock
        self._events = events
        self._max_attempts = None if settings.on_error == "retry" else settings.max_attempts
        self._slots = asyncio.Semaphore(settings.max_inflight)
        self._turns = Turns()
        self._wanted = compile_filters(settings.filters)
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._tasks = Background(f"trigger.{settings.name}")
        self._batches = _Batches(self, self._slots, self._tasks) if settings.batch_size > 1 else None
        self.was_connected = False

    @property
    def record(self) -> TriggerRecord:
        return self._record

    async def close(self) -> None:
        await self._tasks.close()

    def connected(self) -> None:
        self.was_connected = True
        self._progress.say("running")

    async def position(self) -> bytes | None:
        return await store.TriggerStore(self._db).position(self._record.id)

    async def save(self, position: bytes) -> None:
        if len(position) > MAX_POSITION:
            raise ValueError(f"a position of {len(position)} bytes")
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(NovaError), wait=_away, sleep=self._clock.sleep
        ):
            with attempt:
                async with self._db.transaction() as conn:
                    await self._fence.check(conn)
                    await store.save_position(conn, self._record.id, position)

    async def deliver(self, event: SourceEvent) -> Verdict:
        progress = self._progress
        progress.received += 1
        progress.changed = True
        if event.redelivered and event.id in self._recent:
            progress.processed += 1
            return self._counted([event], Verdict.DUPLICATE)
        if self._wanted is not None and not fits(self._wanted, event):
            progress.processed += 1
            return self._counted([event], Verdict.FILTERED)
        if event.ordering_key is None:
            return await self._hand_over(event)
        async with self._turns.turn(event.ordering_key):
            return await self._hand_over(event)

    async def _hand_over(self, event: SourceEvent) -> Verdict:
        if self._batches is not None:
            return await self._batches.put(event)
        async with self._slots:
            return await self.settle([event])

    async def settle(self, events: Sequence[SourceEvent]) -> Verdict:
        """Hand events to the target, as one call, until it takes them or they are given up."""
        tries = _Tries(self._max_attempts, self._clock.now())
        try:
            await self._attempt(events, tries)
        except NotTaken:
            verdict = await self._insist(events, tries)
        else:
            verdict = Verdict.SUCCEEDED
        progress = self._progress
        if verdict is Verdict.SUCCEEDED:
            progress.processed += len(events)
            for event in events:
                self._recent[event.id] = None
            while len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
        else:
            progress.failed += len(events)
        progress.last_event_at = self._clock.now()
        progress.changed = True
        return self._counted(events, verdict)

    async def _insist(self, events: Sequence[SourceEvent], tries: _Tries) -> Verdict:
        await self._clock.sleep(tries.pause_s)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((NotTaken, NovaError)), wait=tries.wait, sleep=self._clock.sleep
        ):
            with attempt:
                if tries.over:
                    return await self._give_up(events, tries)
                for _ in events:
                    self._events.trigger_event(self._record.type, "retried")
                await self._attempt(events, tries)
        return Verdict.SUCCEEDED

    async def _attempt(self, events: Sequence[SourceEvent], tries: _Tries) -> None:
        request_id, began = new_id(), self._clock.monotonic()
        try:
            await self._target.send(events, request_id, tries.attempts + 1)
        except NotTaken as refusal:
            failure = refusal
        except Exception as error:
            log.exception("a trigger's call failed", trigger=self._record.id, request_id=request_id)
            failure = NotTaken(JobError("Nova.Internal", f"internal error ({type(error).__name__})"))
        else:
            return
        took_s = self._clock.monotonic() - began
        tries.failed(failure, request_id, self._clock.now(), took_s)
        self._progress.say(self._progress.state, str(failure))
        raise failure

    async def _give_up(self, events: Sequence[SourceEvent], tries: _Tries) -> Verdict:
        """The event is put where people find it, or dropped. Raises NovaError while the database is away."""
        settings = self._record.settings
        tries.pause_s = 1.0
        if settings.on_error == "drop":
            log.warning(
                "a trigger dropped events", trigger=settings.name, events=len(events), error=tries.error.message
            )
            return Verdict.DROPPED
        letter = DeadLetter(
            scope=self._record.scope,
            function=settings.target,
            qualifier=settings.qualifier,
            payload=self._target.input(events, tries.attempts),
            attempt=tries.attempts,
            source=f"trigger:{settings.name}",
            caller=self._record.created_by,
            attempts=payload.encode(list(tries.story)),
            error=payload.encode(error_of(tries.error)),
            request_id=tries.request_id,
            started_at=tries.began,
        )
        async with self._db.transaction() as conn:
            await self._fence.check(conn)
            if await store.dead_letter(conn, letter) is None:
                raise NovaError("not_found", f"function {settings.target!r} does not exist")
        return Verdict.DEAD_LETTERED

    def _counted(self, events: Sequence[SourceEvent], verdict: Verdict) -> Verdict:
        for _ in events:
            self._events.trigger_event(self._record.type, verdict.value)
        return verdict


def _away(_state: RetryCallState) -> float:
    return 1.0


class _Batches:
    """Events that wait to be handed over together."""

    def __init__(self, delivery: Delivery, slots: asyncio.Semaphore, tasks: Background) -> None:
        settings = delivery.record.settings
        self._delivery = delivery
        self._slots = slots
        self._tasks = tasks
        self._size = settings.batch_size
        self._window_s = settings.batch_window_ms / 1000
        self._waiting: deque[tuple[SourceEvent, asyncio.Future[Verdict]]] = deque()
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def put(self, event: SourceEvent) -> Verdict:
        if self._pump is None or self._pump.done():
            self._pump = self._tasks.spawn("batches", self._run())
        done: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._waiting.append((event, done))
        self._some.set()
        if len(self._waiting) >= self._size:
            self._full.set()
        return await done

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            if self._window_s and len(self._waiting) < self._size:
                self._full.clear()
                try:
                    async with asyncio.timeout(self._window_s):
                        await self._full.wait()
                except TimeoutError:
                    pass
            await self._slots.acquire()
            batch = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            if not self._waiting:
                self._some.clear()
            self._tasks.spawn("batch", self._send(batch))

    async def _send(self, batch: list[tuple[SourceEvent, asyncio.Future[Verdict]]]) -> None:
        try:
            batch = [(event, done) for event, done in batch if not done.done()]  # the others' source is gone
            if not batch:
                return
            try:
                verdict = await self._delivery.settle([event for event, _ in batch])
            except Exception as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                return
            for _, done in batch:
                if not done.done():
                    done.set_result(verdict)
        finally:
            self._slots.release()
