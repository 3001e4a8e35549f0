"""Which triggers run, and where: each is a duty, so exactly one process is in charge of it and another takes over.

A change of a trigger restarts its source in the process that is in charge, without a change of hands.
"""

import asyncio
import random
from contextlib import suppress

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.trigger import WEBHOOK, TriggerRecord
from nova.errors import NovaError
from nova.events.triggers import registry
from nova.events.triggers.base import Source, SourceError
from nova.events.triggers.context import Contexts
from nova.events.triggers.deliver import Delivery, NoEvents, Progress, TriggerEvents
from nova.events.triggers.targets import Ports, target_of
from nova.service import Background, give_way, put_an_end_to
from nova.store.db import Database
from nova.store.listen import Channel, Listener
from nova.store.mirror import Mirror
from nova.store.triggers import TriggerStore
from nova.work.leader import Duty, Fence, LeaseLost, Leases

log = structlog.get_logger(__name__)
REPORT_S = 1.0
LAG_S = 5.0
"""How often a source is asked how much waits, and how long it may take to say."""
_AGAIN_S = (0.5, 30.0)
"""Pause before a source that failed is started again: doubled each time, until it has been connected."""


class Triggers:
    """Every trigger of every active tenant, as far as this process is in charge of it."""

    def __init__(
        self,
        db: Database,
        listener: Listener,
        leases: Leases,
        ports: Ports,
        contexts: Contexts,
        *,
        clock: Clock = SYSTEM_CLOCK,
        events: TriggerEvents | None = None,
    ) -> None:
        self._db = db
        self._store = TriggerStore(db)
        self._leases = leases
        self._ports = ports
        self._contexts = contexts
        self._clock = clock
        self._events = events or NoEvents()
        self._running: dict[str, _Running] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._mirror = Mirror("triggers", listener, Channel.TRIGGERS, self._refresh)
        self._tenants = Mirror("triggers.tenants", listener, Channel.TENANTS, lambda _changed: self._refresh(None))
        self._tasks = Background("triggers")

    async def start(self) -> None:
        await self._mirror.start()
        await self._tenants.start()
        self._tasks.spawn("report", self._report())

    async def close(self) -> None:
        """Stop every source, let others take over, and write down what was done."""
        await self._mirror.close()
        await self._tenants.close()
        await asyncio.gather(*(self._stop(running) for running in self._running.values()), return_exceptions=True)
        await self._tasks.close()

    async def _refresh(self, changed: frozenset[str] | None) -> None:
        ids = None if changed is None else [str(payload.decode(text)["id"]) for text in changed]
        found = {record.id: record for record in await self._store.enabled(ids) if record.type != WEBHOOK}
        for record in found.values():
            running = self._running.get(record.id)
            if running is None:
                running = self._running[record.id] = _Running(self, record)
                self._tasks.spawn("begin", self._begin(running))
            else:
                running.change(record)
        gone = self._running.keys() - found.keys() if ids is None else set(ids) - found.keys()
        for trigger_id in gone:
            if (over := self._running.pop(trigger_id, None)) is not None:
                self._stopping[trigger_id] = self._tasks.spawn("stop", self._stop(over))

    async def _begin(self, running: "_Running") -> None:
        """After its last stop has ended: two duties of one name cannot be."""
        if (stopping := self._stopping.get(running.progress.trigger_id)) is not None:
            await asyncio.wait({stopping})
        if self._running.get(running.progress.trigger_id) is running:
            await running.duty.start()

    async def _stop(self, running: "_Running") -> None:
        mine = running.duty.leading
        await running.duty.close()
        if mine and running.progress.changed:
            with suppress(NovaError):
                await self._store.report([running.progress.take()])
        self._stopping.pop(running.progress.trigger_id, None)

    async def serve(self, running: "_Running", record: TriggerRecord, fence: Fence) -> None:
        """Run a trigger as it is now: until cancelled, or :class:`LeaseLost`."""
        again = _Again()
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_again), wait=again.wait, sleep=self._clock.sleep, reraise=True
        ):
            with attempt:
                running.progress.say("starting")
                try:
                    await self._run(record, running.progress, fence, again)
                except Exception as error:
                    give_way()
                    if not _again(error):
                        raise
                    again.failed(error)
                    running.progress.say("error", _text(error))
                    if not isinstance(error, SourceError | OSError | NovaError):
                        log.exception("a trigger's source failed", trigger=record.id, type=record.type)
                    raise

    async def _run(self, record: TriggerRecord, progress: Progress, fence: Fence, again: "_Again") -> None:
        target = target_of(record, self._ports, self._clock)
        delivery = Delivery(record, target, progress, fence, self._db, self._clock, self._events)
        await registry.prepare([record.type])
        source = registry.source_of(record.type, record.settings.config, self._contexts.of(record))
        lag = asyncio.create_task(self._watch(source, progress), name=f"trigger.{record.settings.name}.lag")
        try:
            await source.run(delivery)
        except ExceptionGroup as several:
            raise _first(several) from None
        finally:
            again.was_connected = delivery.was_connected
            lag.cancel()
            with suppress(asyncio.CancelledError):
                await lag
            await delivery.close()
        raise SourceError("the source has ended")

    async def _watch(self, source: Source, progress: Progress) -> None:
        while True:
            await self._clock.sleep(LAG_S * random.uniform(0.2, 0.4))
            lag = None
            with suppress(Exception):  # it cannot say, for whatever reason; that it is away, run() finds out
                async with asyncio.timeout(LAG_S):
                    lag = await source.lag()
            if lag != progress.lag:
                progress.lag, progress.changed = lag, True
            await self._clock.sleep(LAG_S * random.uniform(0.6, 0.8))

    async def _report(self) -> None:
        while True:
            await self._clock.sleep(REPORT_S)
            try:
                await self._report_once()
            except NovaError as error:
                log.debug("the status of triggers could not be written", error=error.detail)

    async def _report_once(self) -> None:
        """One statement for all that changed."""
        changed = [running.progress for running in self._running.values() if running.progress.changed]
        mine = [progress for progress in changed if self._running[progress.trigger_id].duty.leading]
        if not mine:
            return
        reports = [progress.take() for progress in mine]
        try:
            await self._store.report(reports)
        except BaseException:
            for progress, report in zip(mine, reports, strict=True):
                progress.put_back(report)
            raise


class _Running:
    """A trigger that this process would run, or runs."""

    def __init__(self, triggers: Triggers, record: TriggerRecord) -> None:
        self._triggers = triggers
        self._record = record
        self._changed = asyncio.Event()
        self.progress = Progress(record.id)
        self.duty = Duty(f"trigger/{record.id}", self._lead, triggers._leases)

    def change(self, record: TriggerRecord) -> None:
        if record.revision != self._record.revision:
            self._record = record
            self._changed.set()

    async def _lead(self, fence: Fence) -> None:
        while True:
            self._changed.clear()
            work = asyncio.create_task(self._triggers.serve(self, self._record, fence))
            change = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({work, change}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    return await work
            finally:
                await put_an_end_to(work, change)


class _Again:
    """When a source that failed is started again."""

    def __init__(self) -> None:
        self._failures = 0
        self._at_least = 0.0
        self.was_connected = False

    def failed(self, error: Exception) -> None:
        self._failures = 1 if self.was_connected else self._failures + 1
        self.was_connected = False
        self._at_least = error.retry_after_s if isinstance(error, SourceError) else 0.0

    def wait(self, _state: RetryCallState) -> float:
        least, most = _AGAIN_S
        doubled = least * 2.0 ** min(self._failures - 1, 16)
        return max(self._at_least, min(most, doubled)) * random.uniform(0.8, 1.2)


def _again(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, LeaseLost)


def _first(several: ExceptionGroup[Exception]) -> Exception:
    """What to go by when several parts of a source failed together: that it is not ours any more, else what says most."""
    leaves: list[Exception] = []
    for error in several.exceptions:
        leaves.append(_first(error) if isinstance(error, ExceptionGroup) else error)
    for kind in (LeaseLost, SourceError, OSError):
        for error in leaves:
            if isinstance(error, kind):
                return error
    return leaves[0]


def _text(error: Exception) -> str:
    if isinstance(error, NovaError):
        return error.detail
    if isinstance(error, SourceError | OSError):
        return str(error) or type(error).__name__
    return f"internal error ({type(error).__name__})"
