"""One subscription, delivered from memory by the process in charge of it.

Messages are read as the topic grows, filtered, and delivered at once; a row is written when the first attempt has ended, and the
cursor follows what has a row. What has to be tried again waits as a row, and so do its successors of the same ordering key, so
that one message that fails holds neither the cursor nor the others.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace

import structlog

from nova.domain.asyncs import backoff_s
from nova.domain.filters import compile_filters
from nova.errors import NovaError
from nova.events.bus.delivering import Verdict
from nova.events.bus.dispatch_attempts import Attempts, parcel_of
from nova.events.bus.dispatch_feed import Arrival, Feed
from nova.events.bus.dispatch_items import Item, Place, row_of
from nova.events.bus.dispatch_parts import Parts
from nova.events.bus.dispatch_turns import Turns
from nova.events.bus.dispatch_window import WINDOW, Window
from nova.service import Background
from nova.store.bus_deliveries import Moved, Queued, Status
from nova.store.subscriptions import SubscriptionRecord
from nova.work.leader import Fence

log = structlog.get_logger(__name__)
MAX_ROWS = 10_000
"""While so many deliveries of a subscription wait as rows, no more messages are read for it."""
_CHUNK = 100
_GONE_S = 10.0
"""A receiver that wants no more gets nothing while the pause of its subscription is written."""
_AGAIN_S = 1.0
"""After the database did not answer."""
_BURST_S = 0.02
"""A rate limit lets through at once what it would in so long: timers are not exact."""


class Line:
    """Everything happens on the event loop; only :meth:`stop` waits."""

    def __init__(self, record: SubscriptionRecord, parts: Parts, fence: Fence, feed: Feed) -> None:
        self.fence = fence
        self.feed = feed
        self.broken = False
        """something could not be written although the duty may be ours: load it anew"""
        self._parts = parts
        self._loop = asyncio.get_running_loop()
        self._tasks = Background(f"subscription.{record.id}")
        self._active = False
        self._turns = Turns(self._loop.time, self._hold)
        self._rows: dict[Place, Item] = {}
        self._finished: set[Place] = set()
        self._attempts = Attempts(self, parts, fence, self._tasks, self._loop.time)
        self._paused_until = self._not_before = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._intake: asyncio.Task[None] | None = None
        self._hint = False
        self._set(record)
        self._window = Window(record.cursor, set(), record.cursor)

    @property
    def read_to(self) -> int:
        """The last message that was read."""
        return self._window.read_to

    def _set(self, record: SubscriptionRecord) -> None:
        self.record = record
        self._fits = compile_filters(record.settings.filters)

    # What whoever is in charge of the shard does

    def start(self, rows: Sequence[Queued], blocked: Collection[str], ahead: set[int], *, torn: bool) -> None:
        """``torn``: the reader before did not end in good order."""
        self._window.ahead = ahead
        self._window.careful_to = self.read_to + WINDOW if torn else self.read_to
        if self.record.settings.on_dlq == "block":
            self._turns.start_blocked(blocked)
        self._add_rows(rows)
        self._active = True
        self.wake()
        self.pump()

    def looking(self) -> None:
        """The rows are about to be read for :meth:`renew`."""
        self._finished.clear()

    def renew(self, record: SubscriptionRecord, rows: Sequence[Queued], blocked: Collection[str], since: float) -> None:
        """It was changed, or its rows were; ``since`` is the loop's time at which they were begun to be read."""
        if record.enabled and not self.record.enabled:
            self._paused_until = 0.0
        if record.generation != self.record.generation:
            self._turns.drop_unrecorded()
            self._window = Window(record.cursor, set(), record.cursor)
        self._set(record)
        self._window.deferred.clear()
        there = {(row.sequence, row.generation): row for row in rows}
        for place, item in list(self._rows.items()):
            if place not in there and not item.flying and item.saved is not None and item.saved < since:
                del self._rows[place]
                self._turns.forget(item)
        self._add_rows([row for place, row in there.items() if place not in self._finished])
        self._turns.unblock_but(blocked if record.settings.on_dlq == "block" else (), since)
        self.wake()
        self.pump()

    def wake(self) -> None:
        """There may be new messages."""
        self._hint = True
        if self._active and self._intake is None and self._room():
            self._intake = self._tasks.spawn("read", self._read())

    async def stop(self, grace_s: float) -> None:
        """Begin nothing more; what is under way may end within ``grace_s``."""
        self._active = False
        if self._alarm is not None:
            self._alarm.cancel()
        if self._intake is not None:
            self._intake.cancel()
        await self._attempts.drained(grace_s)
        self._attempts.cancel()
        await self._tasks.close()
        await self._parts.delivering.forget(self.record.id)

    def moved(self) -> Moved:
        """How far it has come, for the recorder."""
        window = self._window
        return Moved(self.record.id, self.record.generation, window.cursor, window.take_expired())

    # Reading

    def _room(self) -> bool:
        return self.record.enabled and not self.broken and self._window.room > 0 and len(self._rows) < MAX_ROWS

    async def _read(self) -> None:
        try:
            while self._hint:
                self._hint = False
                while self._room():
                    generation, read_to = self.record.generation, self.read_to
                    arrivals = await self.feed.after(read_to, min(_CHUNK, self._window.room))
                    if self.record.generation != generation or self.read_to != read_to:
                        continue
                    if not arrivals:
                        self._enter_deferred()
                        self.pump()
                        break
                    self._admit(arrivals)
                    self.pump()
                else:
                    self._hint = True
                    return
        except NovaError as error:
            log.warning("messages cannot be read", subscription=self.record.id, error=error.detail)
            self._loop.call_later(_AGAIN_S, self.wake)
        finally:
            self._intake = None

    def _admit(self, arrivals: Sequence[Arrival]) -> None:
        record, window = self.record, self._window
        for arrival in arrivals:
            message = arrival.message
            sequence = message.sequence
            window.reach(sequence)
            if window.deferred:
                self._enter_deferred(sequence)
            if window.was_done(sequence) or (self._fits is not None and not self._fits(arrival.subject)):
                continue
            key = message.ordering_key if record.settings.ordered else None
            replay = sequence <= record.replayed_to
            item = Item(sequence, record.generation, key, replay, message, since=self._loop.time())
            if sequence <= window.careful_to:
                item.row = True
                self._rows[item.place] = item
            window.open(message)
            self._turns.enter(item)
        self._parts.recorder.move(self)

    def _enter_deferred(self, upto: int | None = None) -> None:
        """Everything before these rows is read; None: there is nothing more to read."""
        self._add_rows(self._window.reached(upto))

    def _add_rows(self, rows: Sequence[Queued]) -> None:
        now = self._loop.time()
        for row in rows:
            if row.generation == self.record.generation and row.sequence > self.read_to:
                self._window.defer(row)
                continue
            place = (row.sequence, row.generation)
            due = now + max(0.0, row.due_s)
            item = self._rows.get(place)
            if item is not None:
                self._turns.hasten(item, row.attempts, due)
                continue
            key = row.ordering_key if self.record.settings.ordered else None
            item = Item(row.sequence, row.generation, key, row.replay, attempts=row.attempts, row=True, saved=now)
            item.due = due
            self._rows[place] = item
            self._turns.enter(item)

    # What may begin

    def _hold(self, item: Item) -> None:
        item.row = True
        self._rows[item.place] = item
        self._put(item, "queued", Verdict("later", self._parts.clock.now(), 0.0), prompt=False, kept=True)

    def pump(self) -> None:
        """Begin whatever may begin now, and see to it that this is called again when more may."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if not self._active or self.broken or not self.record.enabled or not self.fence.held:
            return
        now = self._loop.time()
        self._turns.due(now)
        times = [at for at in (self._start_ready(now), self._turns.next_at) if at is not None]
        if times:
            self._alarm = self._loop.call_at(min(times), self.pump)

    def _start_ready(self, now: float) -> float | None:
        """When to look again; None: when something ends."""
        settings, ready = self.record.settings, self._turns.ready
        while ready and self._attempts.inflight < settings.max_inflight:
            if (until := max(self._paused_until, self._not_before)) > now:
                return until
            if settings.batch_size > 1 and settings.batch_window_ms and len(ready) < settings.batch_size:
                full = ready[0].since + settings.batch_window_ms / 1000
                if full > now:
                    return full
            items: list[Item] = []
            while ready and len(items) < settings.batch_size:
                item = ready.popleft()
                if not item.gone:
                    items.append(item)
            if not items:
                return None
            if rate := settings.rate_limit_per_sec:
                self._not_before = max(now - _BURST_S, self._not_before) + len(items) / rate
            self._attempts.begin(items)
        return None

    # The end of an attempt

    def give_up(self, item: Item, status: Status, verdict: Verdict) -> None:
        """It has ended without an attempt."""
        self._put(item, status, verdict, prompt=True)

    def conclude(self, item: Item, verdict: Verdict) -> None:
        if item.attempts == 1 and item.message is not None and not item.replay:
            late = verdict.started_at - item.message.published_at
            self._parts.events.event_lag(late.total_seconds() * 1000 + verdict.duration_ms)
        if verdict.gone:
            self._paused_until = self._loop.time() + _GONE_S
            self._tasks.spawn("pause", self._pause(item, verdict))
        else:
            self._end(item, verdict)

    async def _pause(self, item: Item, verdict: Verdict) -> None:
        await self._disable(verdict.error or "")
        self._end(item, verdict)

    def _end(self, item: Item, verdict: Verdict) -> None:
        record, events = self.record, self._parts.events
        settings = record.settings
        if verdict.outcome == "done":
            self._put(item, "succeeded", verdict, prompt=item.key is not None or item.row)
            events.event_delivered(record.scope, record.topic, "succeeded")
        elif verdict.outcome == "later":
            item.attempts -= 1
            self._paused_until = max(self._paused_until, self._loop.time() + min(verdict.pause_s, 1.0))
            self._retry(item, verdict, verdict.pause_s)
        elif verdict.outcome == "failed" and item.attempts < settings.max_attempts:
            delay_s = max(verdict.pause_s, backoff_s(settings.backoff_base_ms, settings.backoff_max_ms, item.attempts))
            self._retry(item, verdict, delay_s)
            events.event_delivered(record.scope, record.topic, "retried")
        else:
            self._tasks.spawn("bury", self.die(item, verdict))

    def _retry(self, item: Item, verdict: Verdict, delay_s: float) -> None:
        item.row = True
        item.due = self._loop.time() + delay_s
        self._rows[item.place] = item
        self._turns.stick(item)
        self._put(item, "queued", verdict, prompt=True, delay_s=delay_s)

    async def die(self, item: Item, verdict: Verdict) -> None:
        record = self.record
        error = verdict.error or ""
        if record.settings.dead_letter_topic is not None and item.message is not None:
            error = await self._parts.dead_letters.send(record, parcel_of(record, item), error)
        if record.settings.on_dlq == "block":
            self._turns.block(item)
        self._put(item, "dlq", _with(verdict, error), prompt=True)
        self._parts.events.event_delivered(record.scope, record.topic, "dlq")

    async def _disable(self, reason: str) -> None:
        try:
            await self._parts.shards.disable(self.record.id, reason)
        except NovaError as error:
            log.warning("a subscription cannot be paused", subscription=self.record.id, error=error.detail)

    def broke(self) -> None:
        if not self.broken:
            self.broken = True
            self._parts.broke(self.record.id)

    # Its record

    def _put(
        self,
        item: Item,
        status: Status,
        verdict: Verdict,
        *,
        prompt: bool,
        delay_s: float = 0.0,
        kept: bool = False,
    ) -> None:
        """Write what became of it; ``kept``: it only waits, and nothing was tried."""

        def done(written: bool) -> None:
            if not written:
                self.broke()
                return
            if item.generation == self.record.generation and self._window.recorded(item.sequence):
                self._parts.recorder.move(self)
                if self._hint and self._window.half_empty:
                    self.wake()
            item.saved = self._loop.time()
            if not kept:
                self._settled(item, status)

        ended = row_of(self.record.id, item, status, verdict, delay_s=delay_s, tried=not kept)
        self._parts.recorder.put(self.fence, ended, done, prompt=prompt)

    def _settled(self, item: Item, status: Status) -> None:
        item.flying = False
        if status == "queued":
            item.message = None
            self._turns.wait(item)
            self.pump()
            return
        if item.row:
            self._rows.pop(item.place, None)
            self._finished.add(item.place)
            if self._hint:
                self.wake()
        if status == "dlq" and self.record.settings.on_dlq != "block":
            self._turns.unblock(item)
        if item.key is not None:
            self._turns.ended(item)
            self.pump()


def _with(verdict: Verdict, error: str) -> Verdict:
    return replace(verdict, error=error)
