"""The duty that hands messages of topics to the runs that wait for them.

Each node that waits is a row, written with the node's state; one process leads, has the rows in memory and reads the topics that
are waited for. A message is handed over in one transaction: the row that says so and what its run is told. So a leader that
is killed loses nothing, and a message is handed over once. Messages count from the moment at which their run began, also those
that were published before its node began to wait.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import structlog

from nova.clock import Clock
from nova.domain.filters import Fits, Subject, compile_filters
from nova.errors import NovaError
from nova.events import cloudevent
from nova.events.bus.delivering import TYPE, attributes_of
from nova.store import messages, workflow_waits
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.messages import MessageRow
from nova.store.workflow_runs import KIND
from nova.store.workflow_waits import Key, OpenWait
from nova.work.notices import Notices

log = structlog.get_logger(__name__)
DUTY = "topic-waits"
LOOK_S = 10.0
"""Everything is looked at again so often: notifications are hints."""
PAGE = 200
"""Messages of a topic that are read at a time; as many may be read again after a change of leaders."""
BATCH = 100
"""Messages that are handed over in one transaction."""
_ROWS = 1000
_AWAY_S = 1.0


class Fence(Protocol):
    async def check(self, conn: Connection, /) -> None: ...


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...

    def on_reconnect(self, callback: Callable[[], None], /) -> object: ...


Found = tuple["_Waiting", MessageRow]


@dataclass(slots=True)
class _Waiting:
    """``next``: the sequence of the first message that it has not seen; ``written``: the same, as the row says it."""

    row: OpenWait
    fits: Fits | None
    next: int
    written: int | None


class _Topic:
    """Who waits for messages of one topic. Those whose first filter asks for one value are found by it."""

    def __init__(self) -> None:
        self.waiting: dict[Key, _Waiting] = {}
        self._by_value: dict[str, dict[str, set[Key]]] = {}
        self._others: set[Key] = set()

    def add(self, one: _Waiting) -> None:
        self.waiting[one.row.key] = one
        self._place(one).add(one.row.key)

    def remove(self, key: Key) -> None:
        if (one := self.waiting.pop(key, None)) is not None:
            self._place(one).discard(key)

    def _place(self, one: _Waiting) -> set[Key]:
        exact = one.row.filters[0].get("exact") if one.row.filters else None
        if not exact:
            return self._others
        name, value = next(iter(exact.items()))
        places = self._by_value.setdefault(name, {})
        return places.setdefault(value, set())

    def candidates(self, subject: Subject) -> Iterator[_Waiting]:
        keys = set(self._others)
        for name, places in self._by_value.items():
            value = subject.text(name)
            if value is not None:
                keys |= places.get(value, set())
        return (self.waiting[key] for key in keys)


class TopicWaits:
    """``lead`` is the work of a :class:`nova.work.leader.Duty`."""

    def __init__(self, db: Database, notices: Notices, notifications: Notifications, clock: Clock) -> None:
        self._db = db
        self._notices = notices
        self._clock = clock
        self._wake = asyncio.Event()
        self._runs: set[str] = set()
        self._topics: set[str] = set()
        self._all = True
        self._waited: dict[str, _Topic] = {}
        notifications.on(Channel.TOPICS, self._published)
        notifications.on(Channel.RUNS, self._begun)
        notifications.on_reconnect(self._look_at_all)

    def _published(self, topic_id: str) -> None:
        if topic_id in self._waited:
            self._topics.add(topic_id)
            self._wake.set()

    def _begun(self, message: str) -> None:
        if '"waits"' in message:
            self._runs.add(json.loads(message)["run"])
            self._wake.set()

    def _look_at_all(self) -> None:
        self._all = True
        self._wake.set()

    async def lead(self, fence: Fence) -> None:
        """Until it is cancelled; waits while the database does not answer. Raises LeaseLost when another process leads."""
        try:
            await self._lead(fence)
        finally:
            self._waited.clear()

    async def _lead(self, fence: Fence) -> None:
        self._all, looked = True, self._clock.monotonic()
        while True:
            self._wake.clear()
            if self._all or self._clock.monotonic() - looked >= LOOK_S:
                looked = self._clock.monotonic()
                self._all = True
            try:
                await self._round(fence)
            except NovaError as error:
                if error.status < 500:
                    raise
                log.warning("runs that wait for messages wait for the database", error=error.detail)
                self._all = True
                await self._clock.sleep(_AWAY_S)
                continue
            try:
                async with asyncio.timeout(max(0.0, LOOK_S - (self._clock.monotonic() - looked))):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _round(self, fence: Fence) -> None:
        runs, topics = self._runs, self._topics
        self._runs, self._topics = set(), set()
        if self._all:
            self._all = False
            self._waited.clear()
            topics = await self._take_up(fence, await self._every())
        elif runs:
            self._forget(runs)
            topics |= await self._take_up(fence, await workflow_waits.of_runs(self._db, list(runs)))
        for topic_id in topics:
            await self._read(fence, topic_id)

    async def _every(self) -> list[OpenWait]:
        found: list[OpenWait] = []
        while True:
            rows = await workflow_waits.page(self._db, after=found[-1].key if found else None, limit=_ROWS)
            found += rows
            if len(rows) < _ROWS:
                return found

    def _forget(self, runs: set[str]) -> None:
        for topic in self._waited.values():
            for key in [key for key in topic.waiting if key[0] in runs]:
                topic.remove(key)

    async def _take_up(self, fence: Fence, rows: Iterable[OpenWait]) -> set[str]:
        """Into memory; the topics that are to be read for them."""
        topics: set[str] = set()
        for row in rows:
            try:
                begin = await self._position(row)
            except LookupError:
                await self._give_up(fence, row)
                continue
            assert row.topic_id is not None
            fits = compile_filters(row.filters)
            self._waited.setdefault(row.topic_id, _Topic()).add(_Waiting(row, fits, begin, row.next_sequence))
            topics.add(row.topic_id)
        return topics

    async def _position(self, row: OpenWait) -> int:
        """Raises LookupError when there is no such topic."""
        if row.topic_id is None:
            raise LookupError(row.topic)
        if row.next_sequence is not None:
            return row.next_sequence
        return await messages.sequence_at(self._db, row.topic_id, row.since)

    async def _give_up(self, fence: Fence, row: OpenWait) -> None:
        async with self._db.transaction() as conn:
            await fence.check(conn)
            await workflow_waits.give_up(conn, row)

    async def _read(self, fence: Fence, topic_id: str) -> None:
        """Show every message to those who have not seen it, until there is none left."""
        while (topic := self._waited.get(topic_id)) is not None and topic.waiting:
            begin = min(one.next for one in topic.waiting.values())
            page = await messages.read_after(self._db, topic_id, begin - 1, PAGE)
            found = self._look(topic, page)
            for start in range(0, len(found), BATCH):
                await self._hand_over(fence, topic, found[start : start + BATCH])
            await self._note(fence, topic)
            if len(page) < PAGE and not found:
                break
        if topic is not None and not topic.waiting:
            self._waited.pop(topic_id, None)

    def _look(self, topic: _Topic, page: Sequence[MessageRow]) -> list[Found]:
        """The first message for each that one fits, no two for one message and run; all others have seen the page."""
        found: dict[Key, Found] = {}
        given: set[tuple[str, int]] = set()
        again: set[Key] = set()
        for message in page:
            name = next(iter(topic.waiting.values())).row.topic
            subject = Subject(attributes_of(name, message), message.headers, message.payload)
            for one in topic.candidates(subject):
                key = one.row.key
                if one.next > message.sequence or key in found or key in again:
                    continue
                if one.fits is not None and not one.fits(subject):
                    continue
                if (one.row.run_id, message.sequence) in given:
                    one.next = message.sequence  # it is shown to this one again when the other has it
                    again.add(key)
                    continue
                given.add((one.row.run_id, message.sequence))
                found[key] = (one, message)
        if page:
            for key, one in topic.waiting.items():
                if key not in found and key not in again:
                    one.next = max(one.next, page[-1].sequence + 1)
        return list(found.values())

    async def _hand_over(self, fence: Fence, topic: _Topic, found: Sequence[Found]) -> None:
        async with self._db.transaction() as conn:
            await fence.check(conn)
            told = [(one.row, message.sequence, envelope(one.row, message)) for one, message in found]
            handed = await workflow_waits.hand_over(conn, told)
        for one, message in found:
            if one.row.key in handed:
                topic.remove(one.row.key)
                self._notices.tell(Channel.RUNS, json.dumps({"run": one.row.run_id, "told": "message"}))
            else:
                one.next = message.sequence + 1
        if handed:
            self._notices.work(KIND)

    async def _note(self, fence: Fence, topic: _Topic) -> None:
        """Write how far they have been looked at, now and then."""
        far = [one for one in topic.waiting.values() if one.written is None or one.next - one.written >= PAGE]
        if not far:
            return
        async with self._db.transaction() as conn:
            await fence.check(conn)
            await workflow_waits.advance(conn, [(one.row, one.next) for one in far])
        for one in far:
            one.written = one.next


def envelope(wait: OpenWait, message: MessageRow) -> bytes:
    """The event that a message is, as subscribers get it: a publisher's own attributes are kept."""
    given: dict[str, Any] = dict(message.attributes)
    time = given.pop("time", None)
    return cloudevent.build(
        id=given.pop("id", message.id),
        source=given.pop("source", f"/topics/{wait.topic}"),
        type=given.pop("type", TYPE),
        subject=given.pop("subject", None),
        time=message.published_at if time is None else datetime.fromisoformat(time),
        data=message.payload,
        extensions={
            **given,
            "partitionkey": message.ordering_key,
            "sequence": str(message.sequence),
            "novatenant": wait.scope.tenant,
            "novatopic": wait.topic,
        },
    )
