"""Topics in PostgreSQL. Their messages are :mod:`nova.store.messages`."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Json

from nova.domain.identity import Scope
from nova.domain.topic import SchemaMode
from nova.store.db import Connection, Database, Queries, Row

_sql = Queries("topics")


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """What may be changed on a topic. ``max_retained_mb`` None: only age counts. ``dedup_window_s`` 0: nothing is a duplicate.
    ``payload_schema`` is looked at with ``schema_mode`` ``reject`` only."""

    description: str
    retention_hours: int
    max_retained_mb: int | None
    dedup_window_s: int
    payload_schema: dict[str, Any] | None = None
    schema_mode: SchemaMode = "off"


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """``first_sequence`` is that of the oldest message kept, ``last_sequence`` + 1 when there is none; ``bytes`` are kept."""

    id: str
    scope: Scope
    name: str
    settings: TopicSettings
    first_sequence: int
    last_sequence: int
    bytes: int
    last_at: datetime
    created_by: str
    created_at: datetime
    updated_at: datetime


class TopicStore:
    """Readers take the connection of a running transaction, or one of their own."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, scope: Scope, name: str, conn: Connection | None = None) -> TopicRecord | None:
        row = await (conn or self._db).one(_sql.get, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return None if row is None else _record(row)

    async def lock(self, conn: Connection, scope: Scope, name: str) -> TopicRecord | None:
        """The topic, which is not changed by others, and gets no new subscriptions, before the transaction ends."""
        if await conn.one(_sql.lock, tenant=scope.tenant, namespace=scope.namespace, name=name) is None:
            return None
        return await self.get(scope, name, conn)

    async def page(self, scope: Scope, *, q: str | None, after: str | None, limit: int) -> list[TopicRecord]:
        """Newest first, beginning after the id ``after``; ``q`` is text in the name."""
        rows = await self._db.fetch(
            _sql.page, tenant=scope.tenant, namespace=scope.namespace, q=q, after=after, limit=limit
        )
        return [_record(row) for row in rows]

    async def insert(
        self, conn: Connection, topic_id: str, scope: Scope, name: str, settings: TopicSettings, created_by: str
    ) -> bool:
        """False: the name is taken."""
        made = await conn.run(
            _sql.insert,
            id=topic_id,
            tenant=scope.tenant,
            namespace=scope.namespace,
            name=name,
            created_by=created_by,
            **_columns(settings),
        )
        if made:
            await conn.run(_sql.insert_head, id=topic_id)
        return made > 0

    async def update(self, conn: Connection, topic_id: str, settings: TopicSettings) -> None:
        await conn.run(_sql.update, id=topic_id, **_columns(settings))

    async def delete(self, conn: Connection, topic_id: str) -> None:
        """Its messages go with the next rounds of retention."""
        await conn.run(_sql.delete, id=topic_id)

    async def subscriptions(self, conn: Connection, topic_id: str) -> list[str]:
        """Their names, at most 100."""
        return [row["name"] for row in await conn.fetch(_sql.subscriptions, id=topic_id)]

    async def delete_subscriptions(self, conn: Connection, topic_id: str) -> list[str]:
        """The ids of those that were there."""
        return [row["id"] for row in await conn.fetch(_sql.delete_subscriptions, id=topic_id)]


def _columns(settings: TopicSettings) -> dict[str, Any]:
    columns = asdict(settings)
    schema = columns.pop("payload_schema")
    return columns | {"schema": None if schema is None else Json(schema)}


def _record(row: Row) -> TopicRecord:
    return TopicRecord(
        id=row["id"],
        scope=Scope(row["tenant_id"], row["namespace"]),
        name=row["name"],
        settings=TopicSettings(
            row["description"],
            row["retention_hours"],
            row["max_retained_mb"],
            row["dedup_window_s"],
            row["schema"],
            row["schema_mode"],
        ),
        first_sequence=row["first_sequence"],
        last_sequence=row["last_sequence"],
        bytes=row["bytes"],
        last_at=row["last_at"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
