"""Handlers of subscriptions. A change reaches whoever delivers at once."""

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

from psycopg.errors import ForeignKeyViolation

from nova.api import subscriptions as api
from nova.api.table import Empty, Page, PageQuery
from nova.clock import Clock
from nova.domain.identity import Identity, Scope
from nova.domain.names import LATEST, LIVE
from nova.errors import invalid, not_found
from nova.events.bus.dispatch import SHARDS
from nova.events.bus.subscription_settings import check_right, merged, new_secret, settings_of, view
from nova.http import paging
from nova.http.handler import Answer, Req, handles, identifier
from nova.ids import new_id
from nova.store.db import Connection, Database
from nova.store.functions import FunctionStore
from nova.store.subscriptions import (
    Figures,
    Secrets,
    SubscriptionRecord,
    SubscriptionSettings,
    SubscriptionStore,
    taken,
)
from nova.store.topics import TopicRecord, TopicStore
from nova.store.versions import VersionStore
from nova.store.workflows import WorkflowStore

_ROTATION = timedelta(days=1)
"""A secret that was replaced signs beside the new one for so long."""


class SubscriptionHandlers:
    """Whoever makes or changes a subscription must be allowed to call its target: it acts for them later."""

    def __init__(
        self, db: Database, topics: TopicStore, functions: FunctionStore, versions: VersionStore, clock: Clock
    ) -> None:
        self._db = db
        self._store = SubscriptionStore(db)
        self._topics = topics
        self._functions = functions
        self._versions = versions
        self._workflows = WorkflowStore(db)
        self._clock = clock

    @handles("subscription.create")
    async def create(self, req: Req[api.SubscriptionCreate, Empty]) -> Answer:
        body, topic = req.body, await self._topic(req.scope, req.params["name"])
        settings = settings_of(body)
        now = self._clock.now()
        secret = (body.webhook_signing_secret or new_secret()) if settings.type == "webhook" else None
        record = SubscriptionRecord(
            id=new_id(),
            scope=req.scope,
            topic_id=topic.id,
            topic=topic.name,
            name=body.name,
            consumer_group=body.consumer_group or body.name,
            enabled=body.enabled,
            disabled_reason=None,
            settings=settings,
            secrets=Secrets(secret),
            shard=random.randrange(SHARDS),
            cursor=topic.last_sequence if body.start == "latest" else topic.first_sequence - 1,
            generation=0,
            replayed_to=0,
            epoch=0,
            expired=0,
            created_by=req.identity.subject,
            created_at=now,
            updated_at=now,
        )
        try:
            async with self._db.transaction() as conn:
                await self._check_target(conn, req.identity, record)
                if not await self._store.insert(conn, record):
                    raise taken(record)
        except ForeignKeyViolation:
            raise not_found("topic", topic.name) from None
        return Answer(await self._view(req.scope, record.id, secret=secret), headers={})

    @handles("subscription.list")
    async def list(self, req: Req[None, PageQuery]) -> Page[api.Subscription]:
        topic = await self._topic(req.scope, req.params["name"])
        limit, values = req.query.limit, paging.decode(req.query.cursor, str)
        found = await self._store.page(
            req.scope, topic.id, before=paging.row_id(str(values[0])) if values else None, limit=limit + 1
        )
        shown = found[:limit]
        figures = await self._store.figures([record.id for record in shown])
        more = paging.encode([shown[-1].id]) if len(found) > limit else None
        items = [view(record, figures.get(record.id, Figures())) for record in shown]
        return Page[api.Subscription](items=items, next_cursor=more)

    @handles("subscription.get")
    async def get(self, req: Req[None, Empty]) -> api.Subscription:
        return await self._view(req.scope, identifier("subscription", req.params["id"]))

    @handles("subscription.patch")
    async def patch(self, req: Req[api.SubscriptionPatch, Empty]) -> api.Subscription:
        fresh: str | None = None
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            body = merged(record, req.raw_body)
            changed = replace(
                record,
                name=body.name,
                consumer_group=body.consumer_group or body.name,
                enabled=body.enabled,
                settings=settings_of(body),
            )
            if "webhook_signing_secret" in req.raw_body and record.settings.type == "webhook":
                fresh = body.webhook_signing_secret or new_secret()
                secrets = Secrets(fresh, record.secrets.current, self._clock.now() + _ROTATION)
                changed = replace(changed, secrets=secrets)
            await self._check_target(conn, req.identity, changed)
            await self._store.update(conn, changed)
        return await self._view(req.scope, record.id, secret=fresh)

    @handles("subscription.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            await self._store.delete(conn, record.id)

    @handles("subscription.pause")
    async def pause(self, req: Req[None, Empty]) -> api.Subscription:
        return await self._enable(req, False)

    @handles("subscription.resume")
    async def resume(self, req: Req[None, Empty]) -> api.Subscription:
        return await self._enable(req, True)

    async def _enable(self, req: Req[None, Empty], enabled: bool) -> api.Subscription:
        async with self._db.transaction() as conn:
            record = await self._locked(conn, req)
            if enabled:
                check_right(req.identity, record.settings)
            if record.enabled != enabled:
                await self._store.update(conn, replace(record, enabled=enabled))
        return await self._view(req.scope, record.id)

    async def _topic(self, scope: Scope, name: str) -> TopicRecord:
        record = await self._topics.get(scope, name)
        if record is None:
            raise not_found("topic", name)
        return record

    async def _locked(self, conn: Connection, req: Req[Any, Any]) -> SubscriptionRecord:
        subscription_id = identifier("subscription", req.params["id"])
        record = await self._store.lock(conn, req.scope, subscription_id)
        if record is None:
            raise not_found("subscription", subscription_id)
        return record

    async def _view(self, scope: Scope, subscription_id: str, *, secret: str | None = None) -> api.Subscription:
        record = await self._store.get(scope, subscription_id)
        if record is None:
            raise not_found("subscription", subscription_id)
        figures = await self._store.figures([record.id])
        return view(record, figures.get(record.id, Figures()), secret=secret)

    async def _check_target(self, conn: Connection, identity: Identity, record: SubscriptionRecord) -> None:
        """Raises ``forbidden``, or what is wrong with what it names."""
        settings = record.settings
        check_right(identity, settings)
        if settings.type == "function":
            await self._check_function(conn, record.scope, settings)
        elif settings.type == "workflow" and await self._workflows.get(record.scope, settings.target, conn) is None:
            raise not_found("workflow", settings.target)
        dead = settings.dead_letter_topic
        if dead is None:
            return
        if dead == record.topic:
            raise invalid("dead_letter_topic", "is the topic itself")
        if await self._topics.get(record.scope, dead, conn) is None:
            raise invalid("dead_letter_topic", f"topic {dead!r} does not exist")

    async def _check_function(self, conn: Connection, scope: Scope, settings: SubscriptionSettings) -> None:
        function = await self._functions.lookup(scope, settings.target, conn)
        if function is None:
            raise not_found("function", settings.target)
        qualifier = settings.qualifier
        if qualifier is None or qualifier in (LIVE, LATEST) or qualifier in function.aliases:
            return
        if not qualifier.isdigit() or await self._versions.version(function.id, int(qualifier), conn) is None:
            raise invalid("qualifier", f"function {function.name!r} has no version or alias {qualifier!r}")
