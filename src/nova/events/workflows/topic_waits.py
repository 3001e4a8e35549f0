"""The duty that hands messages of topics to the runs that wait for them.

Each node that waits is a row, written with the node's state; one process leads, has the rows in memory and reads the topics that
are waited for. A message is handed over in one transaction: the row that says so and what its run is told. So a leader that
is killed loses nothing, and a message is handed over once. Messages count from the moment at which their run began, also those
that were published before its node began to wait.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
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
from nova.store.workflow_waits import Key, OpenWait

log = structlog.get_logger(__name__)
DUTY = "topic-waits"
LOOK_S = 10.0
"""Everything is looked at again so often: notifications are hints."""
PAGE = 200
"""Messages of a topic that are read at a time; as many may be read again after a change of leaders."""
_ROWS = 1000
_AWAY_S = 1.0


class Fence(Protocol):
    async def check(self, conn: Connection, /) -> None: ...


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...

    def on_reconnect(self, callback: Callable[[], None], /) -> object: ...


@dataclass(slots=True)
class _Waiting:
    """``next``: the sequence of the first message that it has not seen; ``written``: the same, as the row says it."""

    row: OpenWait
    fits: Fits | None
    next: int
    written: int | None


class TopicWaits:
    """``lead`` is the work of a :class:`nova.work.leader.Duty`."""

    def __init__(self, db: Database, notifications: Notifications, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._wake = asyncio.Event()
        self._runs: set[str] = set()
        self._topics: set[str] = set()
        self._all = True
        self._waiting: dict[str, dict[Key, _Waiting]] = defaultdict(dict)
        """by topic"""
        notifications.on(Channel.TOPICS, self._published)
        notifications.on(Channel.RUNS, self._begun)
        notifications.on_reconnect(self._look_at_all)

    def _published(self, topic_id: str) -> None:
        if topic_id in self._waiting:
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
            self._waiting.clear()

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
            self._waiting.clear()
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
        for waiting in self._waiting.values():
            for key in [key for key in waiting if key[0] in runs]:
                del waiting[key]

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
            self._waiting[row.topic_id][row.key] = _Waiting(row, fits, begin, row.next_sequence)
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
        while waiting := self._waiting.get(topic_id):
            begin = min(one.next for one in waiting.values())
            page = await messages.read_after(self._db, topic_id, begin - 1, PAGE)
            for message in page:
                await self._show(fence, message, waiting)
            if page:
                for one in waiting.values():
                    one.next = max(one.next, page[-1].sequence + 1)
            await self._note(fence, waiting)
            if len(page) < PAGE:
                break
        if not self._waiting.get(topic_id):
            self._waiting.pop(topic_id, None)

    async def _show(self, fence: Fence, message: MessageRow, waiting: dict[Key, _Waiting]) -> None:
        subjects: dict[str, Subject] = {}
        for key, one in list(waiting.items()):
            if one.next > message.sequence:
                continue
            if one.row.topic not in subjects:
                attributes = attributes_of(one.row.topic, message)
                subjects[one.row.topic] = Subject(attributes, message.headers, message.payload)
            if one.fits is not None and not one.fits(subjects[one.row.topic]):
                continue
            async with self._db.transaction() as conn:
                await fence.check(conn)
                handed = await workflow_waits.hand_over(conn, one.row, message.sequence, envelope(one.row, message))
            if handed:
                del waiting[key]

    async def _note(self, fence: Fence, waiting: dict[Key, _Waiting]) -> None:
        """Write how far they have been looked at, now and then."""
        far = [one for one in waiting.values() if one.written is None or one.next - one.written >= PAGE]
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
