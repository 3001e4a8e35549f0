"""Handlers of what was delivered and what is to be delivered again: deliveries, dead letters, seek and replay."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from nova.api import subscriptions as api
from nova.api.table import Empty, Page, PageQuery
from nova.domain.filters import Subject, compile_filters
from nova.errors import NovaError, invalid, not_found
from nova.events.bus.delivering import attributes_of
from nova.events.bus.dispatch import MAX_QUEUED
from nova.events.bus.subscription_settings import delivery_view, view
from nova.http import paging
from nova.http.handler import Req, handles, identifier
from nova.store import messages
from nova.store.bus_deliveries import DeliveryStore, Place, place_of
from nova.store.db import Connection, Database
from nova.store.messages import MessageRow
from nova.store.subscriptions import Figures, SubscriptionRecord, SubscriptionStore
from nova.store.topics import TopicStore

_PAGE = 100
_AT_ONCE = 1000


class DeliveryHandlers:
    def __init__(self, db: Database, topics: TopicStore) -> None:
        self._db = db
        self._topics = topics
        self._subscriptions = SubscriptionStore(db)
        self._deliveries = DeliveryStore(db)

    @handles("subscription.deliveries")
    async def page(self, req: Req[None, api.DeliveryQuery]) -> Page[api.Delivery]:
        subscription_id = identifier("subscription", req.params["id"])
        if await self._subscriptions.get(req.scope, subscription_id) is None:
            raise not_found("subscription", subscription_id)
        limit, values = req.query.limit, paging.decode(req.query.cursor, int, int)
        after = (_number(values[0], 63), _number(values[1], 31)) if values else None
        found = await self._deliveries.page(subscription_id, status=req.query.status, after=after, limit=limit + 1)
        shown = found[:limit]
        more = paging.encode([shown[-1].sequence, shown[-1].generation]) if len(found) > limit else None
        return Page[api.Delivery](items=[delivery_view(record) for record in shown], next_cursor=more)

    @handles("topic.dlq")
    async def dead(self, req: Req[None, PageQuery]) -> Page[api.Delivery]:
        topic = await self._topics.get(req.scope, req.params["name"])
        if topic is None:
            raise not_found("topic", req.params["name"])
        limit, values = req.query.limit, paging.decode(req.query.cursor, str, str)
        found = await self._deliveries.dead(topic.id, after=_after(values) if values else None, limit=limit + 1)
        shown = found[:limit]
        more = None
        if len(found) > limit and shown[-1].ended_at is not None:
            more = paging.encode([shown[-1].ended_at.isoformat(), shown[-1].id])
        return Page[api.Delivery](items=[delivery_view(record) for record in shown], next_cursor=more)

    @handles("delivery.get")
    async def get(self, req: Req[None, Empty]) -> api.Delivery:
        return await self._shown(req, _place(req))

    @handles("delivery.retry")
    async def retry(self, req: Req[None, Empty]) -> api.Delivery:
        place = _place(req)
        async with self._db.transaction() as conn:
            await self._locked(conn, req, place[0])
            if not await self._deliveries.retry(conn, place):
                raise await self._refusal(req, place)
            await self._subscriptions.touch(conn, place[0])
        return await self._shown(req, place)

    @handles("delivery.skip")
    async def skip(self, req: Req[None, Empty]) -> api.Delivery:
        place = _place(req)
        async with self._db.transaction() as conn:
            await self._locked(conn, req, place[0])
            if not await self._deliveries.skip(conn, place):
                raise await self._refusal(req, place)
            await self._subscriptions.touch(conn, place[0])
        return await self._shown(req, place)

    @handles("subscription.dlq.retry")
    async def retry_all(self, req: Req[None, Empty]) -> api.Retried:
        subscription_id, total = identifier("subscription", req.params["id"]), 0
        while True:
            async with self._db.transaction() as conn:
                await self._locked(conn, req, subscription_id)
                room = MAX_QUEUED - await self._deliveries.count_queued(conn, subscription_id)
                count = await self._deliveries.retry_dead(conn, subscription_id, max(0, min(room, _AT_ONCE)))
                await self._subscriptions.touch(conn, subscription_id)
            total += count
            if count < _AT_ONCE or total >= MAX_QUEUED:
                return api.Retried(retried=total)

    @handles("subscription.dlq.purge")
    async def purge(self, req: Req[None, Empty]) -> api.Purged:
        subscription_id, total = identifier("subscription", req.params["id"]), 0
        while True:
            async with self._db.transaction() as conn:
                await self._locked(conn, req, subscription_id)
                count = await self._deliveries.purge_dead(conn, subscription_id, _AT_ONCE)
                await self._subscriptions.touch(conn, subscription_id)
            total += count
            if count < _AT_ONCE:
                return api.Purged(purged=total)

    @handles("subscription.seek")
    async def seek(self, req: Req[api.Seek, Empty]) -> api.Subscription:
        subscription_id = identifier("subscription", req.params["id"])
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req, subscription_id)
            cursor = await self._place_of(conn, record, req.body)
            seen = await self._deliveries.last_of(conn, record.id)
            await self._subscriptions.seek(conn, record, cursor, seen)
        found = await self._subscriptions.get(req.scope, subscription_id)
        if found is None:
            raise not_found("subscription", subscription_id)
        figures = await self._subscriptions.figures([found.id])
        return view(found, figures.get(found.id, Figures()))

    @handles("subscription.replay")
    async def replay(self, req: Req[api.Replay, Empty]) -> api.Replayed:
        body, subscription_id = req.body, identifier("subscription", req.params["id"])
        _one_of(from_sequence=body.from_sequence, from_time=body.from_time, message_ids=body.message_ids)
        if body.message_ids is not None and body.to_sequence is not None:
            raise invalid("to_sequence", "does not go with message_ids")
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req, subscription_id)
            chosen = await self._chosen(conn, record, body)
            waiting = await self._deliveries.count_queued(conn, record.id)
            if waiting + len(chosen) > MAX_QUEUED:
                raise NovaError(
                    "queue_full", f"{waiting} deliveries of the subscription wait already", retry_after_s=30
                )
            generation = await self._subscriptions.next_generation(conn, record)
            count = await self._deliveries.add(conn, record.id, generation, chosen)
        return api.Replayed(generation=generation, deliveries=count)

    async def _chosen(
        self, conn: Connection, record: SubscriptionRecord, body: api.Replay
    ) -> list[tuple[int, str | None]]:
        """Sequence and ordering key of the messages that are kept, asked for, and wanted by the filters, oldest first."""
        fits = compile_filters(record.settings.filters)

        def wanted(found: Sequence[MessageRow]) -> list[tuple[int, str | None]]:
            return [
                (message.sequence, message.ordering_key if record.settings.ordered else None)
                for message in found
                if fits is None or fits(Subject(attributes_of(record.topic, message), message.headers, message.payload))
            ]

        if body.message_ids is not None:
            ids = [found for text in body.message_ids if (found := _uuid(text)) is not None]
            known = await messages.by_id(conn, record.topic_id, ids)
            return wanted(known)[: body.limit]
        after = (body.from_sequence or 1) - 1
        if body.from_time is not None:
            after = await messages.sequence_at(conn, record.topic_id, body.from_time) - 1
        last = body.to_sequence
        if last is None:
            ends = await messages.ends(conn, record.topic_id)
            last = 0 if ends is None else ends.last
        chosen: list[tuple[int, str | None]] = []
        while len(chosen) < body.limit and after < last:
            page = await messages.read_after(conn, record.topic_id, after, _PAGE)
            if not page:
                break
            chosen += wanted([message for message in page if message.sequence <= last])
            after = page[-1].sequence
        return chosen[: body.limit]

    async def _place_of(self, conn: Connection, record: SubscriptionRecord, body: api.Seek) -> int:
        """The cursor from which the wanted message is the next."""
        _one_of(to_sequence=body.to_sequence, to_time=body.to_time, to=body.to)
        ends = await messages.ends(conn, record.topic_id)
        if ends is None:
            raise not_found("topic", record.topic)
        if body.to is not None:
            return ends.last if body.to == "latest" else ends.first - 1
        if body.to_time is not None:
            return await messages.sequence_at(conn, record.topic_id, body.to_time) - 1
        return min(ends.last, max(0, (body.to_sequence or 1) - 1))

    async def _locked(self, conn: Connection, req: Req[Any, Any], subscription_id: str) -> SubscriptionRecord:
        record = await self._subscriptions.lock(conn, req.scope, subscription_id)
        if record is None:
            raise not_found("subscription" if req.params["id"] == subscription_id else "delivery", req.params["id"])
        return record

    async def _shown(self, req: Req[Any, Any], place: Place) -> api.Delivery:
        record = await self._deliveries.get(req.scope, place)
        if record is None:
            raise not_found("delivery", req.params["id"])
        return delivery_view(record)

    async def _refusal(self, req: Req[Any, Any], place: Place) -> NovaError:
        record = await self._deliveries.get(req.scope, place)
        if record is None:
            return not_found("delivery", req.params["id"])
        return NovaError(
            "invalid_state", f"the delivery is {record.status}; only one that waits or is dead can be changed"
        )


def _one_of(**given: object) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise invalid(names[1] if names else next(iter(given)), f"give one of {', '.join(given)}")


def _place(req: Req[Any, Any]) -> Place:
    place = place_of(req.params["id"])
    if place is None:
        raise not_found("delivery", req.params["id"])
    return place


def _uuid(text: str) -> str | None:
    try:
        return identifier("message", text)
    except NovaError:
        return None


def _after(values: tuple[object, ...]) -> tuple[datetime, str, int, int]:
    place = place_of(str(values[1]))
    try:
        moment = datetime.fromisoformat(str(values[0]))
    except ValueError:
        place = None
    if place is None or moment.tzinfo is None:
        raise NovaError("invalid_cursor", "take the cursor from next_cursor of the page before")
    return moment, *place


def _number(value: object, bits: int) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << bits:
        raise NovaError("invalid_cursor", "take the cursor from next_cursor of the page before")
    return value
