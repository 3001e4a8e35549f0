"""Attempts under way for one subscription: what is missing is read, what has a row is counted, then it is delivered."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from nova.domain.ports import Flight
from nova.errors import NovaError
from nova.events.bus.delivering import Parcel, Verdict
from nova.events.bus.dispatch_items import Item, row_of
from nova.events.bus.dispatch_parts import Parts
from nova.service import Background
from nova.store import messages
from nova.store.bus_deliveries import Status, delivery_id
from nova.store.subscriptions import SubscriptionRecord
from nova.work.leader import Fence

log = structlog.get_logger(__name__)
_POLL_S = 0.01


class Ends(Protocol):
    """Who hears what came of attempts."""

    record: SubscriptionRecord

    def conclude(self, item: Item, verdict: Verdict) -> None: ...

    async def die(self, item: Item, verdict: Verdict) -> None: ...

    def give_up(self, item: Item, status: Status, verdict: Verdict) -> None: ...

    def broke(self) -> None: ...

    def pump(self) -> None: ...


class Attempts:
    """``ends`` is told of each; then it may begin others."""

    def __init__(self, ends: Ends, parts: Parts, fence: Fence, tasks: Background, now: Callable[[], float]) -> None:
        self._ends = ends
        self._parts = parts
        self._fence = fence
        self._tasks = tasks
        self._now = now
        self._flights: dict[int, Flight] = {}
        """calls that have no task"""
        self._flown = 0
        self.inflight = 0

    async def drained(self, grace_s: float) -> None:
        """Returns when nothing is under way any more, or after ``grace_s``, or when the duty is another's."""
        deadline = self._now() + grace_s
        while self.inflight and self._fence.held and self._now() < deadline:
            await asyncio.sleep(_POLL_S)

    def cancel(self) -> None:
        """Nobody waits for what is still under way; nothing more is heard of it."""
        for flight in self._flights.values():
            flight.cancel()
        self._flights.clear()

    def begin(self, items: list[Item]) -> None:
        """One attempt for all of ``items``: without a task, where nothing has to be read or written before it."""
        for item in items:
            item.flying = True
        self.inflight += 1
        if any(item.row for item in items) or not self._fly(items):
            self._tasks.spawn("deliver", self._run(items))

    def _fly(self, items: list[Item]) -> bool:
        record = self._ends.record
        self._flown += 1
        number = self._flown
        parcels = [parcel_of(record, item) for item in items]
        flight = self._parts.delivering.begin(record, parcels, partial(self._landed, number, items))
        if flight is None:
            return False
        self._flights[number] = flight
        return True

    def _landed(self, number: int, items: list[Item], verdicts: Sequence[Verdict]) -> None:
        """Runs in a callback of the execution plane, which must not see what goes wrong here."""
        self._flights.pop(number, None)
        self.inflight -= 1
        try:
            self._concluded(items, verdicts)
        except Exception:
            log.exception("the end of a delivery was lost", subscription=self._ends.record.id)
            self._ends.broke()

    def _concluded(self, items: Sequence[Item], verdicts: Sequence[Verdict]) -> None:
        for item, verdict in zip(items, verdicts, strict=True):
            item.attempts += 1
            self._ends.conclude(item, verdict)
        self._ends.pump()

    async def _run(self, items: list[Item]) -> None:
        record = self._ends.record
        try:
            rows = [item for item in items if item.row]
            if rows:
                items = await self._prepare(items, rows)
                if not self._fence.held:  # lost while this was written: another process goes on with them
                    self._ends.broke()
                    return
            parcels = [parcel_of(record, item) for item in items]
            verdicts = await self._parts.delivering.deliver(record, parcels) if parcels else []
        except NovaError as error:
            log.warning("a delivery waits for the database", subscription=record.id, error=error.detail)
            self._ends.broke()
            return
        finally:
            self.inflight -= 1
        self._concluded(items, verdicts)

    async def _prepare(self, items: list[Item], rows: list[Item]) -> list[Item]:
        """Read what was not kept in memory, and count the attempt before it begins; those that are left to be delivered."""
        await self._read(rows)
        max_attempts = self._ends.record.settings.max_attempts
        left = [item for item in items if item not in rows]
        begun = []
        for item in rows:
            verdict = Verdict("dead", self._parts.clock.now(), 0.0)
            if item.message is None:
                error = "the message is past its topic's retention"
                self._ends.give_up(item, "skipped", replace(verdict, error=error))
            elif item.attempts >= max_attempts:
                error = f"its process was lost in the last of {max_attempts} attempts"
                await self._ends.die(item, replace(verdict, error=error))
            else:
                left.append(item)
                begun.append(item)
        written = await asyncio.gather(*(self._count(item) for item in begun))
        if not all(written):
            self._ends.broke()
            return []
        return left

    async def _read(self, rows: Sequence[Item]) -> None:
        missing = [item for item in rows if item.message is None]
        if not missing:
            return
        sequences = sorted({item.sequence for item in missing})
        found = await messages.by_sequence(self._parts.db, self._ends.record.topic_id, sequences)
        by_sequence = {message.sequence: message for message in found}
        for item in missing:
            item.message = by_sequence.get(item.sequence)

    async def _count(self, item: Item) -> bool:
        waits = Verdict("later", self._parts.clock.now(), 0.0)
        begins = row_of(self._ends.record.id, item, "queued", waits, attempts=item.attempts + 1)
        return await self._parts.recorder.write(self._fence, begins)


def parcel_of(record: SubscriptionRecord, item: Item) -> Parcel:
    assert item.message is not None
    identity = delivery_id(record.id, item.sequence, item.generation)
    return Parcel(identity, item.message, item.attempts + 1, item.replay)
