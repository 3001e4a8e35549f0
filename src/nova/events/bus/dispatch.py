"""Delivering: every subscription belongs to a shard, every shard to a duty, and whoever has the duty delivers from memory."""

import asyncio
import contextlib
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.ports import Publisher
from nova.errors import NovaError
from nova.events.bus.delivering import Delivering
from nova.events.bus.dispatch_dead import DeadLetters
from nova.events.bus.dispatch_feed import Feed
from nova.events.bus.dispatch_line import Line
from nova.events.bus.dispatch_parts import DeliveryEvents, NoDeliveryEvents, Parts
from nova.events.bus.dispatch_record import Recorder
from nova.events.bus.dispatch_shares import LOOK_S, Shared, Shares
from nova.events.bus.dispatch_window import WINDOW
from nova.service import Background
from nova.store.bus_deliveries import DeliveryStore
from nova.store.db import Database
from nova.store.listen import Channel, Listener
from nova.store.subscriptions import ShardStore, SubscriptionRecord
from nova.work.leader import Fence, Leases

log = structlog.get_logger(__name__)
SHARDS = 16
"""A subscription's shard is drawn when it is made."""
DUTIES = 4
"""Processes that can share the work."""
POLL_S = 5.0
"""Notifications are hints: what none told of is found by looking."""
MAX_QUEUED = 50_000
"""Rows of one subscription that are held in memory; whoever adds more is refused."""
_BROKEN_S = 5.0
"""A subscription whose deliveries could not be recorded stands still for so long, and is loaded anew then."""
_GRACE_S = 3.0
_GIVE_S = 10.0
"""How long deliveries may go on that are under way when another process is to have the duty: it is not urgent."""
_PAGE = 500
_AT_ONCE = 4
_STAGGER_S = 0.15
"""Between the duties of a process that starts: others that start with it get some of them."""


@dataclass(slots=True, eq=False)
class _Term:
    """What one duty serves while it is ours."""

    fence: Fence
    shards: list[int]
    lines: dict[str, Line] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Dispatcher:
    def __init__(
        self,
        db: Database,
        listener: Listener,
        leases: Leases,
        delivering: Delivering,
        *,
        publisher: Publisher | None = None,
        events: DeliveryEvents | None = None,
        clock: Clock = SYSTEM_CLOCK,
        poll_s: float = POLL_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._db = db
        self._listener = listener
        self._poll_s = poll_s
        self._shards = ShardStore(db)
        self._deliveries = DeliveryStore(db)
        self._recorder = Recorder(self._deliveries, leases.owner)
        self._parts = Parts(
            db=db,
            shards=self._shards,
            recorder=self._recorder,
            delivering=delivering,
            dead_letters=DeadLetters(publisher),
            events=events or NoDeliveryEvents(),
            clock=clock,
            broke=self._on_broken,
        )
        self._terms: list[_Term] = []
        self._feeds: dict[str, Feed] = {}
        self._followers: dict[str, set[Line]] = {}
        self._shares = Shares(db, listener, leases.owner, look_s=look_s)
        self._duties = [
            Shared(f"subscriptions.{n}", partial(self._lead, n), leases, self._shares.yields) for n in range(DUTIES)
        ]
        self._tasks = Background("dispatcher")

    @property
    def in_charge(self) -> int:
        """How many of the duties are this process's."""
        return len(self._terms)

    @property
    def serving(self) -> dict[str, int]:
        """The subscriptions that are delivered from here, each as it was at this epoch."""
        return {key: line.record.epoch for term in self._terms for key, line in term.lines.items()}

    async def start(self) -> None:
        self._listener.on(Channel.TOPICS, self._on_topic)
        self._listener.on(Channel.SUBSCRIPTIONS, self._on_change)
        self._listener.on_reconnect(self._look)
        await self._recorder.start()
        self._tasks.spawn("stand by", self._stand_by())

    async def close(self) -> None:
        """Let what is under way end, write it, and leave the duties to others."""
        await self._tasks.close()
        await self._shares.close()
        await asyncio.gather(*(duty.close() for duty in self._duties))
        await self._recorder.close()

    async def _stand_by(self) -> None:
        for duty in random.sample(self._duties, len(self._duties)):
            await duty.start()
            await asyncio.sleep(_STAGGER_S)
        self._shares.start(self._duties)

    def _on_topic(self, topic_id: str) -> None:
        for line in self._followers.get(topic_id, ()):
            line.wake()

    def _on_change(self, subscription_id: str) -> None:
        for term in self._terms:
            term.changed.add(subscription_id)
            term.wake.set()

    def _on_broken(self, subscription_id: str) -> None:
        """What cannot be recorded is not delivered again and again meanwhile."""
        asyncio.get_running_loop().call_later(_BROKEN_S, self._on_change, subscription_id)

    def _look(self) -> None:
        for term in self._terms:
            term.changed.update(term.lines)
            term.wake.set()

    async def _lead(self, number: int, fence: Fence) -> None:
        term = _Term(fence, [shard for shard in range(SHARDS) if shard % DUTIES == number])
        self._terms.append(term)
        try:
            await self._load(term)
            while True:
                await self._round(term)
        finally:
            self._terms.remove(term)
            await self._leave(term, _GIVE_S if self._duties[number].given else _GRACE_S)

    async def _load(self, term: _Term) -> None:
        after: str | None = None
        while True:
            records = await self._shards.load(term.shards, after=after, limit=_PAGE)
            await self._open(term, records)
            if len(records) < _PAGE:
                return
            after = records[-1].id

    async def _round(self, term: _Term) -> None:
        """Wait until something has changed, or is to be looked at anyway."""
        try:
            async with asyncio.timeout(self._poll_s * random.uniform(0.75, 1.25)):
                await term.wake.wait()
        except TimeoutError:
            with contextlib.suppress(NovaError):
                await self._glance(term)
        term.wake.clear()
        changed, term.changed = term.changed, set()
        if not changed:
            return
        try:
            await self._refresh(term, changed)
        except NovaError as error:
            log.warning("subscriptions cannot be read", error=error.detail)
            term.changed |= changed

    async def _glance(self, term: _Term) -> None:
        seen = await self._shards.glance(term.shards)
        for subscription_id, (epoch, last) in seen.items():
            line = term.lines.get(subscription_id)
            if line is None or line.record.epoch != epoch:
                term.changed.add(subscription_id)
            elif last > line.read_to:
                line.wake()
        term.changed.update(term.lines.keys() - seen.keys())

    async def _refresh(self, term: _Term, ids: Collection[str]) -> None:
        found = {record.id: record for record in await self._shards.some(term.shards, ids)}
        for gone in [line for line in term.lines.values() if line.record.id in ids and line.record.id not in found]:
            await self._close_line(term, gone, 0.0)
        fresh = []
        for record in found.values():
            line = term.lines.get(record.id)
            if line is not None and line.broken:
                await self._close_line(term, line, 0.0)
                line = None
            if line is None:
                fresh.append(record)
            else:
                await self._renew(line)
        await self._open(term, fresh)

    async def _renew(self, line: Line) -> None:
        since = asyncio.get_running_loop().time()
        line.looking()
        rows = await self._deliveries.queued(line.record.id, MAX_QUEUED)
        blocked = await self._blocked(line.record)
        (record,) = await self._shards.some([line.record.shard], [line.record.id]) or [line.record]
        line.renew(record, rows, blocked, since)

    async def _open(self, term: _Term, records: Collection[SubscriptionRecord]) -> None:
        if not records:
            return
        torn = await self._shards.take_charge([record.id for record in records], term.fence.number)
        turn = asyncio.Semaphore(_AT_ONCE)

        async def one(record: SubscriptionRecord) -> None:
            async with turn:
                await self._open_line(term, record, torn=record.id in torn)

        await asyncio.gather(*(one(record) for record in records))

    async def _open_line(self, term: _Term, record: SubscriptionRecord, *, torn: bool) -> None:
        rows = await self._deliveries.queued(record.id, MAX_QUEUED)
        blocked = await self._blocked(record)
        ahead = await self._deliveries.ahead(record.id, record.generation, record.cursor, 2 * WINDOW)
        feed = self._feeds.get(record.topic_id)
        if feed is None:
            feed = self._feeds[record.topic_id] = Feed(self._db, record.topic_id, record.topic)
        line = Line(record, self._parts, term.fence, feed)
        term.lines[record.id] = line
        self._followers.setdefault(record.topic_id, set()).add(line)
        line.start(rows, blocked, ahead, torn=torn)

    async def _blocked(self, record: SubscriptionRecord) -> set[str]:
        return await self._deliveries.blocked(record.id) if record.settings.on_dlq == "block" else set()

    async def _close_line(self, term: _Term, line: Line, grace_s: float) -> None:
        await line.stop(grace_s)
        term.lines.pop(line.record.id, None)
        followers = self._followers.get(line.record.topic_id, set())
        followers.discard(line)
        if not followers:
            self._followers.pop(line.record.topic_id, None)
            self._feeds.pop(line.record.topic_id, None)

    async def _leave(self, term: _Term, grace_s: float) -> None:
        """What is under way ends first, so that whoever comes next need not be careful."""
        ids: Iterable[str] = list(term.lines)
        lines = list(term.lines.values())
        await asyncio.gather(*(self._close_line(term, line, grace_s) for line in lines))
        whole = [line.record.id for line in lines if not line.broken]
        if not ids or not term.fence.held:
            return
        await self._recorder.flush()
        with contextlib.suppress(NovaError):
            await self._shards.leave_charge(whole, term.fence.number)
