"""The loop that runs work: woken by NOTIFY, with a poll as the net; leases kept by heartbeats; closed with grace."""

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import psycopg
import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.errors import NovaError
from nova.ids import new_id
from nova.service import Background
from nova.store.db import Database
from nova.work.queue import CHANNEL, LeaseLost, WorkItem, WorkQueue

log = structlog.get_logger(__name__)


class WorkHandler(Protocol):
    """What one kind of work is. Every ending of the work is the handler's own transaction with ``queue.finish``."""

    async def run(self, item: WorkItem) -> None:
        """Do the work and finish it. May be cancelled when the lease is lost or the process stops.

        An exception means: try again later. :class:`LeaseLost` means: somebody else has it.
        """
        ...

    async def give_up(self, item: WorkItem, reason: str) -> None:
        """No attempt is left: write the noun's own failure and finish."""
        ...


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...

    def on_reconnect(self, callback: Callable[[], None], /) -> object: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """How work of one kind is run here. ``backoff_s`` is about the first retry's delay; it doubles each time."""

    handler: WorkHandler
    concurrency: int
    per_tenant: int | None = None
    max_attempts: int = 3
    backoff_s: float = 1
    backoff_max_s: float = 60


@dataclass(slots=True)
class _Running:
    item: WorkItem
    task: asyncio.Task[None]
    lease_ends: float
    lost: bool = False


class Runner:
    """Claims no more than it can run at once, so no lease is spent on waiting in a local buffer."""

    def __init__(
        self,
        db: Database,
        notifications: Notifications,
        kinds: Mapping[str, Kind],
        *,
        lease_s: float = 30,
        batch: int = 32,
        poll_s: float = 2,
        grace_s: float = 10,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.queue = WorkQueue(db, new_id(), lease_s=lease_s)
        self._notifications = notifications
        self._kinds = dict(kinds)
        self._batch = batch
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._wake = {kind: asyncio.Event() for kind in self._kinds}
        self._check = asyncio.Event()
        self._loops = Background("work")
        self._closing = False

    async def start(self) -> None:
        self._notifications.on(CHANNEL, self._on_notify)
        self._notifications.on_reconnect(self._wake_all)
        for kind in self._kinds:
            self._loops.spawn(f"claim.{kind}", self._claim_loop(kind))
        self._loops.spawn("heartbeat", self._heartbeat_loop())

    async def close(self) -> None:
        """Claim nothing more, give what runs ``grace_s`` to end, hand the rest back without counting an attempt."""
        self._closing = True
        self._wake_all()
        tasks = [running.task for running in self._running.values()]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._grace_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._loops.close()

    def _on_notify(self, payload: str) -> None:
        message = json.loads(payload)
        kind, withdrawn = message["kind"], message.get("withdrawn")
        if withdrawn is None and kind in self._wake:
            self._wake[kind].set()
        elif any(r.item.subject == withdrawn and r.item.kind == kind for r in self._running.values()):
            self._check.set()

    def _wake_all(self) -> None:
        for event in self._wake.values():
            event.set()

    async def _claim_loop(self, name: str) -> None:
        kind, wake = self._kinds[name], self._wake[name]
        while not self._closing:
            wake.clear()
            free = kind.concurrency - sum(r.item.kind == name for r in self._running.values())
            items: list[WorkItem] = []
            if free > 0:
                try:
                    items = await self.queue.claim(name, min(free, self._batch), per_tenant=kind.per_tenant)
                except (NovaError, psycopg.Error) as error:
                    log.warning("cannot claim work", kind=name, error=str(error))
            for item in items:
                self._begin(kind, item)
            if not items:
                await _wait(wake, self._poll_s)

    def _begin(self, kind: Kind, item: WorkItem) -> None:
        task = asyncio.create_task(self._work(kind, item), name=f"work.{item.kind}.{item.subject}")
        self._running[item.id] = _Running(item, task, self._clock.monotonic() + self.queue.lease_s)
        task.add_done_callback(lambda _task: self._ended(item))

    def _ended(self, item: WorkItem) -> None:
        del self._running[item.id]
        self._wake[item.kind].set()

    async def _work(self, kind: Kind, item: WorkItem) -> None:
        try:
            await self._attempt(kind, item)
        except asyncio.CancelledError:
            if self._running[item.id].lost:
                log.warning("work was taken away", kind=item.kind, subject=item.subject)
                return
            await self._give_back(item, delay_s=0, counts=False)
            raise
        except LeaseLost:
            log.warning("work was taken away", kind=item.kind, subject=item.subject)
        except Exception as error:
            log.error("work failed", kind=item.kind, subject=item.subject, attempt=item.attempt, exc_info=error)
            await self._fail(kind, item, error)

    async def _attempt(self, kind: Kind, item: WorkItem) -> None:
        if item.attempt > kind.max_attempts:
            # it took its worker down with it every time: nobody was left to count
            await kind.handler.give_up(item, f"the worker was lost in each of {kind.max_attempts} attempts")
        else:
            await kind.handler.run(item)

    async def _fail(self, kind: Kind, item: WorkItem, error: Exception) -> None:
        if item.attempt < kind.max_attempts:
            await self._give_back(item, delay_s=_delay(kind, item.attempt), counts=True)
            return
        reason = error.detail if isinstance(error, NovaError) else f"internal error ({type(error).__name__})"
        try:
            await kind.handler.give_up(item, reason)
        except LeaseLost:
            log.warning("work was taken away", kind=item.kind, subject=item.subject)
        except Exception as second:
            # the lease runs out and the next claim gives up again
            log.error("cannot record a failure", kind=item.kind, subject=item.subject, exc_info=second)

    async def _give_back(self, item: WorkItem, *, delay_s: float, counts: bool) -> None:
        try:
            await self.queue.release(item, delay_s=delay_s, counts=counts)
        except (NovaError, psycopg.Error) as error:
            log.warning("cannot give work back; its lease will run out", subject=item.subject, error=str(error))
            return
        asyncio.get_running_loop().call_later(delay_s, self._wake[item.kind].set)

    async def _heartbeat_loop(self) -> None:
        while True:
            self._check.clear()
            held = list(self._running.values())
            if held:
                await self._heartbeat(held)
            await _wait(self._check, self.queue.lease_s / 3)

    async def _heartbeat(self, held: list[_Running]) -> None:
        sent = self._clock.monotonic()
        try:
            ours: set[str] | None = await self.queue.heartbeat([running.item for running in held])
        except (NovaError, psycopg.Error) as error:
            log.warning("cannot prolong leases", error=str(error))
            ours = None
        for running in held:
            if ours is not None and running.item.id in ours:
                running.lease_ends = sent + self.queue.lease_s
            elif ours is not None or self._clock.monotonic() >= running.lease_ends:
                running.lost = True
                running.task.cancel()


def _delay(kind: Kind, attempt: int) -> float:
    """Seconds before the next attempt: doubling, with jitter so that many failures do not come back together."""
    return min(kind.backoff_max_s, kind.backoff_s * 2.0 ** (attempt - 1)) * random.uniform(0.75, 1.25)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
