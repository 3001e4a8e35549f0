"""The duty that moves what is due from the outbox into its topic: one process at a time, so that the order holds."""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from nova.domain.message import Published
from nova.errors import NovaError
from nova.store import bus_outbox, messages
from nova.store.bus_outbox import BusOutboxStore
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.messages import Appended
from nova.work.notices import Notices

log = structlog.get_logger(__name__)
DUTY = "outbox"
POLL_S = 5.0
"""Longest pause: notifications are hints."""
BATCH = 500


class Fence(Protocol):
    async def check(self, conn: Connection, /) -> None: ...


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...


class Relay:
    """``lead`` is the work of a :class:`nova.work.leader.Duty`.

    A row and the message that it becomes are one transaction, so nothing is published twice or lost, whenever the process dies.
    """

    def __init__(self, db: Database, notices: Notices, notifications: Notifications) -> None:
        self._db = db
        self._store = BusOutboxStore(db)
        self._notices = notices
        self._due = asyncio.Event()
        notifications.on(Channel.TOPICS, self._heard)

    def _heard(self, payload: str) -> None:
        if payload == bus_outbox.DUE:
            self._due.set()

    async def lead(self, fence: Fence) -> None:
        """Until cancelled; waits while the database does not answer."""
        while True:
            self._due.clear()
            try:
                pause_s = await self._round(fence)
            except NovaError as error:
                log.warning("the outbox waits for the database", error=error.detail)
                pause_s = POLL_S
            if pause_s > 0:
                try:
                    async with asyncio.timeout(pause_s):
                        await self._due.wait()
                except TimeoutError:
                    continue

    async def _round(self, fence: Fence) -> float:
        """Relay a batch; seconds until there may be more."""
        if await self.relay(fence) == BATCH:
            return 0
        due_s = await self._store.next_due_s()
        return POLL_S if due_s is None else min(POLL_S, max(0.001, due_s))

    async def relay(self, fence: Fence) -> int:
        """Publish rows that are due, at most :data:`BATCH`; how many there were."""
        async with self._db.transaction() as conn:
            await fence.check(conn)
            due = await bus_outbox.due(conn, BATCH)
            outcomes = await messages.append(conn, due) if due else []
            done: list[tuple[str, Published]] = []
            for request, outcome in zip(due, outcomes, strict=True):
                if isinstance(outcome, Appended):  # else its topic is being deleted, and the row with it
                    done.append((request.entries[0].id, outcome.published[0]))
            if done:
                await bus_outbox.published(conn, done)
        for topic_id in {outcome.topic_id for outcome in outcomes if isinstance(outcome, Appended)}:
            self._notices.tell(Channel.TOPICS, topic_id)
        return len(done)
