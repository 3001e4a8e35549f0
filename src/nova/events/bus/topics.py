"""Handlers of topics."""

from dataclasses import fields
from typing import Any

from nova.api import topics as api
from nova.api.table import Empty, Page
from nova.domain.identity import Scope
from nova.errors import NovaError, not_found
from nova.http import body as bodies
from nova.http import paging
from nova.http.handler import Req, handles
from nova.ids import new_id
from nova.payload import encode
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.topics import TopicRecord, TopicSettings, TopicStore

_FIELDS = tuple(field.name for field in fields(TopicSettings))
_ALIASES = {"payload_schema": "schema"}


class TopicHandlers:
    def __init__(self, db: Database, topics: TopicStore) -> None:
        self._db = db
        self._topics = topics

    @handles("topic.create")
    async def create(self, req: Req[api.TopicCreate, Empty]) -> api.Topic:
        async with self._db.transaction() as conn:
            made = await self._topics.insert(
                conn, new_id(), req.scope, req.body.name, _settings(req.body), req.identity.subject
            )
            if not made:
                raise NovaError("already_exists", f"topic {req.body.name!r} exists already")
            return _view(await self._found(conn, req.scope, req.body.name))

    @handles("topic.list")
    async def list(self, req: Req[None, api.TopicQuery]) -> Page[api.Topic]:
        limit, values = req.query.limit, paging.decode(req.query.cursor, str)
        after = paging.row_id(str(values[0])) if values else None
        found = await self._topics.page(req.scope, q=req.query.q, after=after, limit=limit + 1)
        more = paging.encode([found[limit - 1].id]) if len(found) > limit else None
        return Page[api.Topic](items=[_view(record) for record in found[:limit]], next_cursor=more)

    @handles("topic.get")
    async def get(self, req: Req[None, Empty]) -> api.Topic:
        return _view(await self._found(None, req.scope, req.params["name"]))

    @handles("topic.patch")
    async def patch(self, req: Req[api.TopicPatch, Empty]) -> api.Topic:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            await self._topics.update(conn, record.id, _merged(record, req.raw_body))
            return _view(await self._found(conn, req.scope, record.name))

    @handles("topic.delete")
    async def delete(self, req: Req[None, api.Cascade]) -> None:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            if req.query.cascade:
                for subscription in await self._topics.delete_subscriptions(conn, record.id):
                    await conn.notify(Channel.SUBSCRIPTIONS, subscription)
            elif names := await self._topics.subscriptions(conn, record.id):
                raise NovaError(
                    "in_use",
                    f"topic {record.name!r} has subscriptions; delete them, or ask with cascade=true",
                    extra={"references": names},
                )
            await self._topics.delete(conn, record.id)

    async def _locked(self, conn: Connection, req: Req[Any, Any]) -> TopicRecord:
        record = await self._topics.lock(conn, req.scope, req.params["name"])
        if record is None:
            raise not_found("topic", req.params["name"])
        return record

    async def _found(self, conn: Connection | None, scope: Scope, name: str) -> TopicRecord:
        record = await self._topics.get(scope, name, conn)
        if record is None:
            raise not_found("topic", name)
        return record


def _settings(body: api.TopicFields) -> TopicSettings:
    return TopicSettings(**{name: getattr(body, name) for name in _FIELDS})


def _merged(record: TopicRecord, patch: dict[str, Any]) -> TopicSettings:
    """A merge patch, checked like a creation."""
    current = _named(record)
    merged = {name: value for name, value in {**current, **patch}.items() if value is not None}
    return _settings(bodies.parse(api.TopicFields, encode(merged)))


def _named(record: TopicRecord) -> dict[str, Any]:
    """What may be changed, by the names that clients use."""
    return {_ALIASES.get(name, name): getattr(record.settings, name) for name in _FIELDS}


def _view(record: TopicRecord) -> api.Topic:
    kept = record.last_sequence - record.first_sequence + 1
    return api.Topic(
        **_named(record),
        id=record.id,
        name=record.name,
        messages=kept,
        bytes=record.bytes,
        first_sequence=record.first_sequence,
        last_sequence=record.last_sequence,
        last_published_at=record.last_at if record.last_sequence else None,
        created_by=record.created_by,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
