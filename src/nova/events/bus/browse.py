"""Looking at a topic: pages of messages, single ones, and a live view."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from nova import payload
from nova.api import topics as api
from nova.api.table import Empty, Page
from nova.errors import NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Req, handles
from nova.http.sse import Batch, Event
from nova.security import access
from nova.store import messages
from nova.store.db import Database
from nova.store.listen import Channel
from nova.store.messages import MessageRow
from nova.store.topics import TopicRecord, TopicStore

_POLL_S = 5.0
"""Longest pause of a live view: notifications are hints."""
_AT_ONCE = 100


class Notifications(Protocol):
    def on(self, channel: str, callback: Callable[[str], None], /) -> object: ...


class Arrivals:
    """Tells in this process which topics have new messages, as far as somebody waits for them."""

    def __init__(self, notifications: Notifications) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        notifications.on(Channel.TOPICS, self._heard)

    @contextmanager
    def at(self, topic_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the topic has got something, from now on."""
        event = asyncio.Event()
        self._waiting[topic_id].add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[topic_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[topic_id]

    def _heard(self, topic_id: str) -> None:
        for event in self._waiting.get(topic_id, ()):
            event.set()


class BrowseHandlers:
    def __init__(self, db: Database, topics: TopicStore, arrivals: Arrivals) -> None:
        self._db = db
        self._topics = topics
        self._arrivals = arrivals

    @handles("topic.messages")
    async def list(self, req: Req[None, api.MessageQuery]) -> Page[api.Message]:
        query, topic = req.query, await self._topic(req)
        if query.from_sequence is not None and query.from_time is not None:
            raise invalid("from_time", "cannot go with from_sequence")
        after = (query.from_sequence or 0) - 1
        if query.from_time is not None:
            after = await messages.sequence_at(self._db, topic.id, query.from_time) - 1
        if values := paging.decode(query.cursor, int):
            after = int(values[0])
        found = await messages.read_after(self._db, topic.id, after, query.limit + 1, ordering_key=query.ordering_key)
        shown, open_to_caller = found[: query.limit], _open(req)
        more = paging.encode([shown[-1].sequence]) if len(found) > query.limit else None
        return Page[api.Message](items=[_view(row, open_to_caller) for row in shown], next_cursor=more)

    @handles("topic.message")
    async def get(self, req: Req[None, Empty]) -> api.Message:
        topic, text = await self._topic(req), req.params["sequence"]
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise not_found("message", text[:64])
        sequence = int(text)
        found = await messages.by_sequence(self._db, topic.id, [sequence])
        if found:
            return _view(found[0], _open(req))
        if 0 < sequence <= topic.last_sequence:
            raise NovaError("gone", f"message {sequence} is past the retention of topic {topic.name!r}")
        raise not_found("message", text)

    @handles("topic.stream")
    async def stream(self, req: Req[None, api.StreamQuery]) -> AsyncIterator[Event | Batch]:
        topic = await self._topic(req)
        after = topic.last_sequence
        if req.query.from_sequence is not None:
            after = max(0, req.query.from_sequence - 1)
        if (last := req.http.headers.get("last-event-id")) is not None:
            if not last.isascii() or not last.isdigit() or len(last) > 18:
                raise invalid("Last-Event-ID", "not an event id of this stream")
            after = int(last)
        return self._follow(topic, after, _open(req))

    async def _follow(self, topic: TopicRecord, after: int, open_to_caller: bool) -> AsyncIterator[Event | Batch]:
        """Reads at the pace of whoever listens; ends when the topic is deleted."""
        with self._arrivals.at(topic.id) as arrived:
            while True:
                arrived.clear()
                found = await messages.read_after(self._db, topic.id, after, _AT_ONCE)
                if found:
                    if (dropped := found[0].sequence - after - 1) > 0:
                        yield Event({"dropped": dropped}, "lagged", str(found[0].sequence - 1))
                    yield Batch([_event(row, open_to_caller) for row in found])
                    after = found[-1].sequence
                    continue
                try:
                    async with asyncio.timeout(_POLL_S):
                        await arrived.wait()
                except TimeoutError:
                    still = await self._topics.get(topic.scope, topic.name)
                    if still is None or still.id != topic.id:
                        yield Event({"reason": "the topic was deleted"}, "end")
                        return

    async def _topic(self, req: Req[Any, Any]) -> TopicRecord:
        topic = await self._topics.get(req.scope, req.params["name"])
        if topic is None:
            raise not_found("topic", req.params["name"])
        return topic


def _open(req: Req[Any, Any]) -> bool:
    return access.allowed(req.identity, "payload:read", None)


def _view(row: MessageRow, open_to_caller: bool) -> api.Message:
    return api.Message(
        sequence=row.sequence,
        id=row.id,
        payload=json.loads(row.payload) if open_to_caller else None,
        headers=dict(row.headers),
        ordering_key=row.ordering_key,
        attributes=dict(row.attributes),
        size=row.size,
        published_by=row.published_by,
        published_at=row.published_at,
    )


def _event(row: MessageRow, open_to_caller: bool) -> Event:
    """As :class:`nova.api.topics.Message`, the payload as it was sent."""
    data = {
        "sequence": row.sequence,
        "id": row.id,
        "payload": msgspec.Raw(row.payload) if open_to_caller else None,
        "headers": row.headers,
        "ordering_key": row.ordering_key,
        "attributes": row.attributes,
        "size": row.size,
        "published_by": row.published_by,
        "published_at": row.published_at,
    }
    return Event(payload.encode(data), "message", str(row.sequence))
