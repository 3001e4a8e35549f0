"""Subscriptions in PostgreSQL: what each is, and how far it has come.

Whoever changes one notifies :attr:`Channel.SUBSCRIPTIONS` with its id in that transaction, so that whoever delivers looks again.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel

Target = Literal["function", "workflow", "webhook"]
OnDlq = Literal["continue", "block"]
_sql = Queries("subscriptions")


@dataclass(frozen=True, slots=True)
class SubscriptionSettings:
    """What may be changed on a subscription. ``target`` is the name of a function or workflow of the scope, or a URL.

    ``filters`` are expressions of :mod:`nova.domain.filters`; a message must fit them all. ``max_attempts`` counts
    executions. ``timeout_s`` None: the function's own. ``rate_limit_per_sec`` 0: no limit.
    """

    type: Target
    target: str
    qualifier: str | None = None
    filters: list[dict[str, Any]] = field(default_factory=list)
    max_attempts: int = 3
    backoff_base_ms: int = 1_000
    backoff_max_ms: int = 60_000
    timeout_s: float | None = None
    max_inflight: int = 10
    rate_limit_per_sec: float = 0.0
    ordered: bool = True
    on_dlq: OnDlq = "continue"
    dead_letter_topic: str | None = None
    batch_size: int = 1
    batch_window_ms: int = 0
    webhook_method: str = "POST"
    webhook_headers: dict[str, str] = field(default_factory=dict)
    webhook_timeout_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class Secrets:
    """What webhooks are signed with; ``old`` beside it until ``old_until``."""

    current: str | None = None
    old: str | None = None
    old_until: datetime | None = None

    def valid(self, now: datetime) -> list[str]:
        keys = [] if self.current is None else [self.current]
        if self.old is not None and self.old_until is not None and now < self.old_until:
            keys.append(self.old)
        return keys


@dataclass(frozen=True, slots=True)
class SubscriptionRecord:
    """One subscription. Every message up to ``cursor`` has a delivery or was filtered out.

    ``generation`` is that of the deliveries which are made as the cursor moves: it grows with a seek. What is read again up
    to ``replayed_to`` is a replay. ``epoch`` grows when anything but the cursor changes.
    """

    id: str
    scope: Scope
    topic_id: str
    topic: str
    name: str
    consumer_group: str
    enabled: bool
    disabled_reason: str | None
    settings: SubscriptionSettings
    secrets: Secrets
    shard: int
    cursor: int
    generation: int
    replayed_to: int
    epoch: int
    expired: int
    created_by: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Figures:
    """``ahead`` messages are after the cursor, ``queued`` deliveries wait as rows; everything up to ``acked`` is done.

    ``oldest_s`` is the age of the first that is not; None: everything is done.
    """

    ahead: int = 0
    queued: int = 0
    dlq: int = 0
    acked: int = 0
    oldest_s: float | None = None


_settings = TypeAdapter(SubscriptionSettings)


class SubscriptionStore:
    """What the API reads and writes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def insert(self, conn: Connection, record: SubscriptionRecord) -> bool:
        """False: the topic has one of this name or consumer group."""
        row = await conn.one(
            _sql.insert,
            id=record.id,
            tenant=record.scope.tenant,
            namespace=record.scope.namespace,
            topic_id=record.topic_id,
            name=record.name,
            consumer_group=record.consumer_group,
            enabled=record.enabled,
            settings=Jsonb(asdict(record.settings)),
            secret=record.secrets.current,
            shard=record.shard,
            cursor=record.cursor,
            created_by=record.created_by,
        )
        if row is not None:
            await conn.notify(Channel.SUBSCRIPTIONS, record.id)
        return row is not None

    async def get(self, scope: Scope, subscription_id: str) -> SubscriptionRecord | None:
        row = await self._db.one(_sql.get, id=subscription_id, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else _record(row)

    async def lock(self, conn: Connection, scope: Scope, subscription_id: str) -> SubscriptionRecord | None:
        row = await conn.one(_sql.lock, id=subscription_id, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else _record(row)

    async def page(self, scope: Scope, topic_id: str, *, before: str | None, limit: int) -> list[SubscriptionRecord]:
        """Newest first."""
        rows = await self._db.fetch(
            _sql.page, tenant=scope.tenant, namespace=scope.namespace, topic_id=topic_id, before=before, limit=limit
        )
        return [_record(row) for row in rows]

    async def update(self, conn: Connection, record: SubscriptionRecord) -> SubscriptionRecord:
        """Write what it is from now on. Raises ``already_exists`` when its new name or group is taken."""
        try:
            row = await conn.one(
                _sql.update,
                id=record.id,
                name=record.name,
                consumer_group=record.consumer_group,
                enabled=record.enabled,
                settings=Jsonb(asdict(record.settings)),
                secret=record.secrets.current,
                old_secret=record.secrets.old,
                old_secret_until=record.secrets.old_until,
            )
        except UniqueViolation:
            raise taken(record) from None
        assert row is not None
        await conn.notify(Channel.SUBSCRIPTIONS, record.id)
        reason = None if record.enabled else record.disabled_reason
        return replace(record, updated_at=row["updated_at"], disabled_reason=reason)

    async def seek(self, conn: Connection, record: SubscriptionRecord, cursor: int, seen: int) -> int:
        """Read on after ``cursor``, as a new generation, whose number this returns. ``seen``: the last that was delivered."""
        row = await conn.one(_sql.seek, id=record.id, cursor=cursor, seen=seen)
        assert row is not None
        await conn.notify(Channel.SUBSCRIPTIONS, record.id)
        return int(row["generation"])

    async def next_generation(self, conn: Connection, record: SubscriptionRecord) -> int:
        row = await conn.one(_sql.next_generation, id=record.id)
        assert row is not None
        await conn.notify(Channel.SUBSCRIPTIONS, record.id)
        return int(row["generations"])

    async def touch(self, conn: Connection, subscription_id: str) -> None:
        """Its deliveries have changed."""
        await conn.run(_sql.touch, id=subscription_id)
        await conn.notify(Channel.SUBSCRIPTIONS, subscription_id)

    async def delete(self, conn: Connection, subscription_id: str) -> None:
        """With its deliveries."""
        await conn.run(_sql.delete, id=subscription_id)
        await conn.notify(Channel.SUBSCRIPTIONS, subscription_id)

    async def figures(self, ids: Collection[str]) -> dict[str, Figures]:
        rows = await self._db.fetch(_sql.figures, ids=list(ids))
        return {row.pop("sid"): Figures(**row) for row in rows}


class ShardStore:
    """What those read who deliver: the subscriptions of the shards that they are in charge of."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def load(self, shards: Sequence[int], *, after: str | None, limit: int) -> list[SubscriptionRecord]:
        """By id. Those of suspended tenants are left out."""
        rows = await self._db.fetch(_sql.shard, shards=list(shards), after=after, limit=limit)
        return [_record(row) for row in rows]

    async def some(self, shards: Sequence[int], ids: Collection[str]) -> list[SubscriptionRecord]:
        return [_record(row) for row in await self._db.fetch(_sql.of_shard, shards=list(shards), ids=list(ids))]

    async def glance(self, shards: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Of each subscription: its epoch, and the last sequence of its topic."""
        rows = await self._db.fetch(_sql.glance, shards=list(shards))
        return {row["sid"]: (row["epoch"], row["last"]) for row in rows}

    async def take_charge(self, ids: Collection[str], fence: int) -> set[str]:
        """Those whose last reader did not end in good order."""
        rows = await self._db.fetch(_sql.take_charge, ids=sorted(ids), fence=fence)
        return {row["sid"] for row in rows if row["torn"]}

    async def leave_charge(self, ids: Collection[str], fence: int) -> None:
        await self._db.run(_sql.leave_charge, ids=sorted(ids), fence=fence)

    async def disable(self, subscription_id: str, reason: str) -> None:
        async with self._db.transaction() as conn:
            await conn.run(_sql.disable, id=subscription_id, reason=reason)
            await conn.notify(Channel.SUBSCRIPTIONS, subscription_id)


def taken(record: SubscriptionRecord) -> NovaError:
    return NovaError(
        "already_exists",
        f"the topic has a subscription {record.name!r} or a consumer group {record.consumer_group!r} already",
    )


def _record(row: Row) -> SubscriptionRecord:
    return SubscriptionRecord(
        id=row["sid"],
        scope=Scope(row["tenant_id"], row["namespace"]),
        topic_id=row["tid"],
        topic=row["topic"],
        name=row["name"],
        consumer_group=row["consumer_group"],
        enabled=row["enabled"],
        disabled_reason=row["disabled_reason"],
        settings=_settings.validate_python(row["settings"]),
        secrets=Secrets(row["secret"], row["old_secret"], row["old_secret_until"]),
        shard=row["shard"],
        cursor=row["cursor"],
        generation=row["generation"],
        replayed_to=row["replayed_to"],
        epoch=row["epoch"],
        expired=row["expired"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
