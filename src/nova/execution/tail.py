"""The live tail of a function's calls: complete, in the order of commits, resumable at any line.

The table is the feed; a notification only says that there is more. So nothing is lost when a reader is slow, a
connection breaks or the database goes away and comes back.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from typing import Any
from uuid import UUID

from nova import payload
from nova.clock import rfc3339
from nova.errors import NovaError, invalid
from nova.http.sse import Batch, Event
from nova.store.db import Row
from nova.store.invocations import EVERY_FUNCTION, InvocationStore
from nova.store.listen import Channel, Listener

_ID = re.compile(r"(\d{1,18})(?:\.(\d{1,9}))?")
_CHUNK = 200
_BATCH = 500
"""events in one write; a record may have a quarter of a million lines"""
_POLL_S = 2.0
"""the net under a notification that was lost"""
_RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Position:
    """After line ``line`` of record ``seq``; ``line`` None: after the whole record. Its text form is the event's id."""

    seq: int
    line: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises ``validation_failed`` for what is not an id of this stream."""
        match = _ID.fullmatch(text.strip())
        if match is None:
            raise invalid("Last-Event-ID", "not an event id of this stream")
        return cls(int(match[1]), int(match[2]) if match[2] else None)

    def __str__(self) -> str:
        return str(self.seq) if self.line is None else f"{self.seq}.{self.line}"


class LogFeed:
    """Wakes the readers of this process when records of their function were written."""

    def __init__(self, store: InvocationStore, listener: Listener) -> None:
        self._store = store
        self._readers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        listener.on(Channel.LOGS, self._announced)
        listener.on_reconnect(lambda: self._announced(EVERY_FUNCTION))

    def _announced(self, functions: str) -> None:
        for function in self._readers if functions == EVERY_FUNCTION else functions.split(","):
            for reader in self._readers.get(function, ()):
                reader.set()

    async def follow(
        self,
        function_id: UUID,
        position: Position | None,
        *,
        since: datetime | None,
        q: str | None,
        request_id: UUID | None,
    ) -> AsyncIterator[Batch]:
        """Every line and call after ``position`` (None: from ``since``, or from now); never ends by itself."""
        if position is None:
            position = Position(await self._store.feed_position(function_id, since))
        more = asyncio.Event()
        self._readers[str(function_id)].add(more)
        try:
            while True:
                more.clear()
                try:
                    after = position.seq if position.line is None else position.seq - 1
                    rows = await self._store.feed(function_id, after, request_id=request_id, since=since, limit=_CHUNK)
                except NovaError:
                    await asyncio.sleep(_RETRY_S)
                    continue
                events = chain.from_iterable(_events(row, position, q) for row in rows)
                while batch := list(islice(events, _BATCH)):
                    yield Batch(batch)
                if rows:
                    position = Position(rows[-1]["seq"])
                if len(rows) < _CHUNK:
                    await _first_of(more, _POLL_S)
        finally:
            self._leave(str(function_id), more)

    def _leave(self, function: str, reader: asyncio.Event) -> None:
        readers = self._readers[function]
        readers.discard(reader)
        if not readers:
            del self._readers[function]


def _events(row: Row, position: Position, q: str | None) -> Iterator[Event]:
    """A ``line`` event per printed line after ``position``; then, when nothing is searched, the ``call`` itself."""
    seq = row["seq"]
    skip = (position.line or 0) if position.seq == seq else 0
    head = {"request_id": str(row["id"]), "version": row["version"], "time": rfc3339(row["created_at"])}
    for number, (stream, text) in enumerate(_lines(row), 1):
        if number > skip and (q is None or q in text):
            data = payload.encode({**head, "stream": stream, "text": text})
            yield Event(data, event="line", id=str(Position(seq, number)))
    if q is None:
        yield Event(payload.encode({**head, **_outcome(row)}), event="call", id=str(Position(seq)))


def _lines(row: Row) -> Iterator[tuple[str, str]]:
    for stream in ("stdout", "stderr"):
        if text := row[stream]:
            for line in text.removesuffix("\n").split("\n"):
                yield stream, line.removesuffix("\r")


def _outcome(row: Row) -> dict[str, Any]:
    error = None
    if row["error_kind"] is not None:
        error = {"type": row["error_kind"], "message": row["error_message"], "stack": row["error_stack"] or []}
    return {
        "status": row["status"],
        "duration_ms": row["duration_ms"],
        "cold_start": row["cold_start"],
        "error": error,
    }


async def _first_of(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
