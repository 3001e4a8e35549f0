"""The loop that runs work: woken by NOTIFY, with a poll as the net; leases kept by heartbeats; closed with grace."""

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import psycopg
import structlog
from msgspec import Struct

from nova.clock import SYSTEM_CLOCK, Clock
from nova.errors import NovaError
from nova.ids import new_id
from nova.service import Background
from nova.store.db import Database
from nova.work.kinds import GAP_S, Claim, Claimed, Kind, WorkHandler
from nova.work.lane import Lane
from nova.work.notices import PROCESS
from nova.work.queue import CHANNEL, ClaimKey, LeaseLost, WorkItem, WorkQueue

__all__ = ["GAP_S", "Claim", "Claimed", "Kind", "Notifications", "Runner", "WorkHandler"]

log = structlog.get_logger(__name__)
_BUSY_GAP_S = 0.003
"""From a claim that found many to the next: places become free meanwhile."""
_FEW = 4
"""Less than this part of what a claim could have had is few."""


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...

    def on_reconnect(self, callback: Callable[[], None], /) -> object: ...


class _Running(Struct):
    item: WorkItem
    work: asyncio.Future[None]
    """a task, or what its kind began without one"""
    lease_ends: float
    lost: bool = False


class Runner:
    """Claims no more than it can run at once, and lets what is handed over wait for a moment: no lease is spent on waiting."""

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
        self._batch = batch
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._clock = clock
        self._running: dict[ClaimKey, _Running] = {}
        self._lanes = {name: Lane(kind, clock, self._begin, self._return) for name, kind in kinds.items()}
        self._check = asyncio.Event()
        self._loops = Background("work")
        self._claims: list[asyncio.Task[None]] = []
        self._closing = False

    def lane(self, kind: str) -> Lane:
        """Where work of a kind that this runner runs is handed over."""
        return self._lanes[kind]

    async def start(self) -> None:
        self._notifications.on(CHANNEL, self._on_notify)
        self._notifications.on_reconnect(self._wake_all)
        self._claims = [
            self._loops.spawn(f"claim.{name}", self._claim_loop(name, lane)) for name, lane in self._lanes.items()
        ]
        self._loops.spawn("heartbeat", self._heartbeat_loop())

    async def close(self) -> None:
        """Claim nothing more, give what runs ``grace_s`` to end, hand the rest back without counting an attempt."""
        self._closing = True
        self._wake_all()
        if self._claims:
            await asyncio.wait(self._claims, timeout=self._grace_s)
        for lane in self._lanes.values():
            await self._release(await lane.close(self._grace_s))
        if self._running:
            await asyncio.wait([running.work for running in self._running.values()], timeout=self._grace_s)
            late = [running for running in self._running.values() if running.work.cancel()]
            await asyncio.gather(*(running.work for running in late), return_exceptions=True)
            await self._release([running.item for running in late if not isinstance(running.work, asyncio.Task)])
        await self._loops.close()

    def _on_notify(self, payload: str) -> None:
        message = json.loads(payload)
        kind, withdrawn = message["kind"], message.get("withdrawn")
        if message.get("by") == PROCESS:
            return  # heard when it was sent
        if withdrawn is not None:
            if any(r.item.subject == withdrawn and r.item.kind == kind for r in self._running.values()):
                self._check.set()
            elif kind in self._lanes:
                self._lanes[kind].withdrawn(withdrawn)
        elif kind in self._lanes:
            if (due_s := message.get("due_s")) is not None:
                self._lanes[kind].look_after(due_s)
            else:
                self._lanes[kind].look()

    def _wake_all(self) -> None:
        for lane in self._lanes.values():
            lane.look()
            lane.room.set()

    async def _claim_loop(self, name: str, lane: Lane) -> None:
        while not self._closing:
            try:
                if not await _wait(lane.due, self._poll_s):
                    await self._look_ahead(name, lane)
                    lane.look()
                if (pause := lane.next_claim - self._clock.monotonic()) > 0:
                    await asyncio.sleep(pause)
                if (free := lane.free) <= 0:
                    lane.want_room()
                    await _wait(lane.room, self._poll_s)
                    continue
                began = self._clock.monotonic()
                claimed = await self._claim(name, lane, min(free, self._batch))
                few = not claimed.more and len(claimed.items) * _FEW < self._batch
                lane.next_claim = began + (lane.kind.gap_s if few else _BUSY_GAP_S)
                for item in claimed.items:
                    self._begin(lane, item, began)
            except (NovaError, psycopg.Error) as error:
                log.warning("cannot claim work", kind=name, error=str(error))
                await self._clock.sleep(self._poll_s)

    async def _claim(self, name: str, lane: Lane, batch: int) -> Claimed:
        more = True
        lane.begin_claim(batch)
        try:
            if lane.kind.claim is not None:
                claimed = await lane.kind.claim(self.queue.owner, batch, self.queue.lease_s)
            else:
                items = await self.queue.claim(name, batch, per_tenant=lane.kind.per_tenant)
                # at the cap of a tenant the queue has more for later: whoever ends an item looks again
                claimed = Claimed(items, len(items) == batch)
            more = claimed.more
        finally:
            lane.end_claim(more=more)
        return claimed

    async def _look_ahead(self, name: str, lane: Lane) -> None:
        """Nobody notified for a while. What becomes due before the next poll is to start in its time."""
        own = lane.kind.next_due
        due_s = await (self.queue.next_due_s(name) if own is None else own())
        if due_s is not None and due_s < self._poll_s:
            lane.look_after(due_s)

    def _begin(self, lane: Lane, item: WorkItem, leased_at: float) -> None:
        lane.running += 1
        kind = lane.kind
        work = None if kind.begin is None or _worn(kind, item) else kind.begin(item)
        self._follow(
            lane, item, work or asyncio.create_task(self._work(lane.kind, item)), leased_at + self.queue.lease_s
        )

    def _follow(self, lane: Lane, item: WorkItem, work: "asyncio.Future[None]", lease_ends: float) -> None:
        self._running[item.claim] = _Running(item, work, lease_ends)
        work.add_done_callback(partial(self._ended, lane, item))

    def _ended(self, lane: Lane, item: WorkItem, work: "asyncio.Future[None]") -> None:
        running = self._running.pop(item.claim)
        if not isinstance(work, asyncio.Task):
            if work.cancelled():
                if running.lost:
                    log.warning("work was taken away", kind=item.kind, subject=item.subject)
            elif (error := work.exception()) is not None:
                self._follow(lane, item, asyncio.create_task(self._wrong(lane.kind, item, error)), running.lease_ends)
                return
        lane.ended()

    def _return(self, items: Sequence[WorkItem]) -> None:
        """What waited here for too long."""
        self._loops.spawn("return", self._release(items))

    async def _release(self, items: Sequence[WorkItem]) -> None:
        if not items:
            return
        try:
            await self.queue.release_all(items)
        except (NovaError, psycopg.Error) as error:
            log.warning("cannot give work back; its lease will run out", items=len(items), error=str(error))
            return
        for kind in {item.kind for item in items}:
            self._lanes[kind].look()

    async def _work(self, kind: Kind, item: WorkItem) -> None:
        try:
            await self._attempt(kind, item)
        except asyncio.CancelledError:
            if self._running[item.claim].lost:
                log.warning("work was taken away", kind=item.kind, subject=item.subject)
                return
            await self._give_back(item, delay_s=0, counts=False)
            raise
        except Exception as error:
            await self._wrong(kind, item, error)

    async def _wrong(self, kind: Kind, item: WorkItem, error: BaseException) -> None:
        if isinstance(error, LeaseLost):
            log.warning("work was taken away", kind=item.kind, subject=item.subject)
        else:
            log.error("work failed", kind=item.kind, subject=item.subject, attempt=item.attempt, exc_info=error)
            await self._fail(kind, item, error)

    async def _attempt(self, kind: Kind, item: WorkItem) -> None:
        if _worn(kind, item):
            await kind.handler.give_up(item, f"the worker was lost in each of {kind.max_attempts} attempts")
        else:
            await kind.handler.run(item)

    async def _fail(self, kind: Kind, item: WorkItem, error: BaseException) -> None:
        if kind.max_attempts is None or item.attempt < kind.max_attempts:
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
        self._lanes[item.kind].look_after(delay_s)

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
            ours: set[ClaimKey] | None = await self.queue.heartbeat([running.item for running in held])
        except (NovaError, psycopg.Error) as error:
            log.warning("cannot prolong leases", error=str(error))
            ours = None
        for running in held:
            if ours is not None and running.item.claim in ours:
                running.lease_ends = sent + self.queue.lease_s
            elif ours is not None or self._clock.monotonic() >= running.lease_ends:
                running.lost = True
                running.work.cancel()


def _worn(kind: Kind, item: WorkItem) -> bool:
    """It took its worker down with it every time: nobody was left to count."""
    return kind.max_attempts is not None and item.attempt > kind.max_attempts


def _delay(kind: Kind, attempt: int) -> float:
    """Seconds before the next attempt: doubling, with jitter so that many failures do not come back together."""
    return min(kind.backoff_max_s, kind.backoff_s * 2.0 ** min(attempt - 1, 40)) * random.uniform(0.75, 1.25)


async def _wait(event: asyncio.Event, timeout_s: float) -> bool:
    """False when the time ran out."""
    if event.is_set():
        return True
    try:
        async with asyncio.timeout(timeout_s):
            return await event.wait()
    except TimeoutError:
        return False
