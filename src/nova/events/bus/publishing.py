"""Handlers of what is published: at once, in batches, or kept in the outbox first."""

import json
from dataclasses import replace
from typing import Any

from nova.api import topics as api
from nova.api.table import Empty, Page
from nova.clock import Clock
from nova.config import LimitSettings
from nova.domain.message import MAX_DELAY_S, Published
from nova.errors import NovaError, invalid, not_found
from nova.events.bus import inbound
from nova.events.bus.publish import TopicPublisher
from nova.http import body as bodies
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.security import access
from nova.store.bus_outbox import DUE, BusOutboxStore, OutboxRecord
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.topics import TopicStore

_MIB = 1 << 20


class PublishHandlers:
    """Bodies are read here, so that payloads stay the bytes that were sent."""

    def __init__(
        self,
        db: Database,
        publisher: TopicPublisher,
        topics: TopicStore,
        outbox: BusOutboxStore,
        limits: LimitSettings,
        clock: Clock,
    ) -> None:
        self._db = db
        self._publisher = publisher
        self._topics = topics
        self._outbox = outbox
        self._limits = limits
        self._clock = clock

    @handles("topic.publish")
    async def publish(self, req: Req[None, Empty]) -> Answer:
        message = inbound.one(await self._read(req), req.http.headers)
        topic = req.params["name"]
        (told,) = await self._publisher.publish(req.scope, topic, [message], caller=req.identity.subject)
        body = api.PublishedOne(message=_told(told))
        if told.sequence is None:
            return Answer(body, 202, {"Location": f"/outbox/{told.id}"})
        return Answer(body, 200 if told.duplicate else 201, {"Location": f"/topics/{topic}/messages/{told.sequence}"})

    @handles("topic.publish_batch")
    async def publish_batch(self, req: Req[None, Empty]) -> Answer:
        messages = inbound.many(api.PublishBatch, await self._read(req), req.http.headers)
        topic = req.params["name"]
        told = await self._publisher.publish(req.scope, topic, messages, caller=req.identity.subject)
        body = api.PublishedBatch(messages=[_told(one) for one in told])
        return Answer(body, 201, {"Location": f"/topics/{topic}/messages"})

    @handles("outbox.add")
    async def add(self, req: Req[None, Empty]) -> Answer:
        headers = req.http.headers
        bodies.require_json(headers.get("content-type"))
        body, content = inbound.plain(api.OutboxAdd, await self._read(req))
        message = replace(inbound.message_of(body, content, headers), delay_s=self._delay_s(body))
        caller = req.identity.subject
        row = await self._publisher.keep(req.scope, req.params["name"], message, hold=body.hold, caller=caller)
        return Answer(await self._view_of(req, row), 202, {"Location": f"/outbox/{row}"})

    @handles("outbox.list")
    async def list(self, req: Req[None, api.OutboxQuery]) -> Page[api.OutboxRow]:
        topic = await self._topics.get(req.scope, req.params["name"])
        if topic is None:
            raise not_found("topic", req.params["name"])
        query, values = req.query, paging.decode(req.query.cursor, str)
        after = paging.row_id(str(values[0])) if values else None
        found = await self._outbox.page(topic.id, status=query.status, after=after, limit=query.limit + 1)
        shown = found[: query.limit]
        more = paging.encode([shown[-1].id]) if len(found) > query.limit else None
        return Page[api.OutboxRow](items=[_view(req, record) for record in shown], next_cursor=more)

    @handles("outbox.get")
    async def get(self, req: Req[None, Empty]) -> api.OutboxRow:
        return await self._view_of(req, _id(req))

    @handles("outbox.release")
    async def release(self, req: Req[None, Empty]) -> api.OutboxRow:
        async with self._db.transaction() as conn:
            if not await self._outbox.release(conn, req.scope, _id(req)):
                await self._refuse(conn, req, "held")
            await conn.notify(Channel.TOPICS, DUE)
        return await self._view_of(req, _id(req))

    @handles("outbox.cancel")
    async def cancel(self, req: Req[None, Empty]) -> None:
        async with self._db.transaction() as conn:
            if not await self._outbox.cancel(conn, req.scope, _id(req)):
                await self._refuse(conn, req, "held or pending")

    async def _read(self, req: Req[None, Empty]) -> bytes:
        declared = req.http.headers.get("content-length")
        limit = self._limits.body_mb * _MIB
        return await bodies.read(req.http.receive, declared.encode() if declared else None, limit)

    def _delay_s(self, body: api.OutboxAdd) -> float:
        if body.not_before is None:
            return body.delay_s
        if body.delay_s:
            raise invalid("not_before", "cannot go with delay_s")
        delay_s = max(0.0, (body.not_before - self._clock.now()).total_seconds())
        if delay_s > MAX_DELAY_S:
            raise invalid("not_before", f"at most {MAX_DELAY_S // 86_400} days from now")
        return delay_s

    async def _view_of(self, req: Req[Any, Any], row: str) -> api.OutboxRow:
        record = await self._outbox.get(req.scope, row)
        if record is None:
            raise not_found("outbox row", row)
        return _view(req, record)

    async def _refuse(self, conn: Connection, req: Req[Any, Any], wanted: str) -> None:
        record = await self._outbox.get(req.scope, _id(req), conn)
        if record is None:
            raise not_found("outbox row", _id(req))
        raise NovaError("invalid_state", f"the row is {record.status}, not {wanted}")


def _id(req: Req[Any, Any]) -> str:
    text = req.params["id"]
    try:
        return paging.row_id(text)
    except NovaError:
        raise not_found("outbox row", text[:64]) from None


def _told(published: Published) -> api.PublishedMessage:
    return api.PublishedMessage(id=published.id, sequence=published.sequence, duplicate=published.duplicate)


def _view(req: Req[Any, Any], record: OutboxRecord) -> api.OutboxRow:
    shown = record.payload is not None and access.allowed(req.identity, "payload:read", None)
    return api.OutboxRow(
        id=record.id,
        topic=record.topic,
        status=record.status,
        not_before=record.not_before,
        payload=json.loads(record.payload) if shown and record.payload else None,
        headers=json.loads(record.headers) if record.headers else {},
        ordering_key=record.ordering_key,
        size=record.size,
        sequence=record.sequence,
        duplicate=record.duplicate,
        created_by=record.created_by,
        created_at=record.created_at,
        published_at=record.published_at,
    )
