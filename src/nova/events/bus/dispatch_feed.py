"""The end of a topic, read once for all who follow it."""

import asyncio

from nova.domain.filters import Subject
from nova.events.bus.delivering import attributes_of
from nova.store import messages
from nova.store.db import Database
from nova.store.messages import MessageRow

_KEPT = 1024
_KEPT_BYTES = 8 << 20


class Arrival:
    """A message, and what filters see of it."""

    __slots__ = ("message", "subject")

    def __init__(self, topic: str, message: MessageRow) -> None:
        self.message = message
        self.subject = Subject(attributes_of(topic, message), message.headers, message.payload)


class Feed:
    """Keeps the last messages, at most 1024 of them and 8 MiB; who is further behind reads for himself."""

    def __init__(self, db: Database, topic_id: str, topic: str) -> None:
        self._db = db
        self._topic_id = topic_id
        self._topic = topic
        self._kept: list[Arrival] = []
        self._bytes = 0
        self._turn = asyncio.Lock()
        self.followers = 0

    async def after(self, sequence: int, limit: int) -> list[Arrival]:
        """Up to ``limit`` messages after ``sequence``, in order. Raises ``dependency_unavailable``."""
        if (found := self._from_memory(sequence, limit)) is not None:
            return found
        if self._kept and sequence < self._kept[-1].message.sequence:
            return await self._read(sequence, limit)
        async with self._turn:
            if (found := self._from_memory(sequence, limit)) is not None:
                return found
            arrivals = await self._read(sequence, limit)
            self._keep(arrivals)
            return arrivals

    def _from_memory(self, sequence: int, limit: int) -> list[Arrival] | None:
        if not self._kept:
            return None
        first, last = self._kept[0].message.sequence, self._kept[-1].message.sequence
        if not first - 1 <= sequence < last:
            return None
        start = sequence + 1 - first
        return self._kept[start : start + limit]

    async def _read(self, sequence: int, limit: int) -> list[Arrival]:
        return [
            Arrival(self._topic, message)
            for message in await messages.read_after(self._db, self._topic_id, sequence, limit)
        ]

    def _keep(self, arrivals: list[Arrival]) -> None:
        """Sequences have no gaps, so what is kept is found by its number."""
        if not arrivals:
            return
        if not self._kept or arrivals[0].message.sequence != self._kept[-1].message.sequence + 1:
            self._kept, self._bytes = [], 0
        self._kept += arrivals
        self._bytes += sum(arrival.message.size for arrival in arrivals)
        if len(self._kept) > 2 * _KEPT or self._bytes > _KEPT_BYTES:
            self._trim()

    def _trim(self) -> None:
        kept, total = 0, 0
        for arrival in reversed(self._kept):
            total += arrival.message.size
            if kept == _KEPT or total > _KEPT_BYTES // 2:
                break
            kept += 1
        self._kept = self._kept[len(self._kept) - kept :]
        self._bytes = sum(arrival.message.size for arrival in self._kept)
