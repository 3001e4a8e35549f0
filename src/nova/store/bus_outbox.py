"""The outbox of topics in PostgreSQL: accepted, and a message of its topic later.

A row becomes its message in the transaction that marks it published, so exactly once. Whoever adds or releases one notifies
:attr:`Channel.TOPICS` with :data:`DUE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from nova.domain.identity import Scope
from nova.domain.message import Published
from nova.store.db import Connection, Database, Queries, Row
from nova.store.messages import Append, Entry

Status = Literal["held", "pending", "published"]
DUE = "outbox"
"""What is notified for rows that may be due; no topic's id looks like it."""
_sql = Queries("bus_outbox")


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry that is to be published in ``delay_s`` seconds; ``held``: not before it is released."""

    scope: Scope
    topic_id: str
    entry: Entry
    delay_s: float
    held: bool = False


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """``payload`` and ``headers`` are JSON text; the payload is None once it is published. ``sequence``: where it went, or
    that of the message which it repeats (``duplicate``)."""

    id: str
    topic: str
    status: Status
    not_before: datetime
    payload: str | None
    headers: str | None
    ordering_key: str | None
    size: int
    sequence: int | None
    duplicate: bool
    created_by: str
    created_at: datetime
    published_at: datetime | None


async def add(conn: Connection, rows: Sequence[Waiting]) -> None:
    """Raises psycopg's ForeignKeyViolation when a topic is gone."""
    entries = [row.entry for row in rows]
    await conn.run(
        _sql.add,
        ids=[entry.id for entry in entries],
        tenants=[row.scope.tenant for row in rows],
        namespaces=[row.scope.namespace for row in rows],
        topics=[row.topic_id for row in rows],
        statuses=["held" if row.held else "pending" for row in rows],
        delays=[float(row.delay_s) for row in rows],
        payloads=[entry.payload for entry in entries],
        headers=[entry.headers for entry in entries],
        ordering_keys=[entry.ordering_key for entry in entries],
        attributes=[entry.attributes for entry in entries],
        dedup_keys=[entry.dedup_key for entry in entries],
        traceparents=[entry.traceparent for entry in entries],
        tracestates=[entry.tracestate for entry in entries],
        sizes=[entry.size for entry in entries],
        callers=[entry.caller for entry in entries],
    )


async def due(conn: Connection, limit: int) -> list[Append]:
    """The rows whose time has come, in their order, locked until the transaction ends; each is a request of its own."""
    rows = await conn.fetch(_sql.due, limit=limit)
    return [Append(Scope(row["tenant_id"], row["namespace"]), row["topic"], [_entry(row)]) for row in rows]


async def published(conn: Connection, rows: Sequence[tuple[str, Published]]) -> None:
    """What became of rows, by their ids."""
    await conn.run(
        _sql.published,
        ids=[row_id for row_id, _ in rows],
        sequences=[message.sequence for _, message in rows],
        duplicates=[message.duplicate for _, message in rows],
    )


class BusOutboxStore:
    """What people ask for and change."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def next_due_s(self) -> float | None:
        """Seconds until the next row is due, less than 0 when it is late; None: nothing waits."""
        row = await self._db.one(_sql.next_due)
        return None if row is None else float(row["seconds"])

    async def get(self, scope: Scope, row_id: str, conn: Connection | None = None) -> OutboxRecord | None:
        row = await (conn or self._db).one(_sql.get, id=row_id, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else OutboxRecord(**row)

    async def page(self, topic_id: str, *, status: Status | None, after: str | None, limit: int) -> list[OutboxRecord]:
        """Newest first, beginning after the id ``after``."""
        rows = await self._db.fetch(_sql.page, topic=topic_id, status=status, after=after, limit=limit)
        return [OutboxRecord(**row) for row in rows]

    async def release(self, conn: Connection, scope: Scope, row_id: str) -> bool:
        """Let a held row go; False: there is none that is held."""
        return await conn.run(_sql.release, id=row_id, tenant=scope.tenant, namespace=scope.namespace) > 0

    async def cancel(self, conn: Connection, scope: Scope, row_id: str) -> bool:
        """Delete a row that is not published; False: there is none."""
        return await conn.run(_sql.cancel, id=row_id, tenant=scope.tenant, namespace=scope.namespace) > 0

    async def delete_published(self, before: datetime, limit: int) -> int:
        return await self._db.run(_sql.delete_published, before=before, limit=limit)


def _entry(row: Row) -> Entry:
    values: dict[str, Any] = {name: row[name] for name in Entry.__dataclass_fields__ if name in row}
    return Entry(**values, caller=row["created_by"])
