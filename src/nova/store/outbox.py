"""The outbox in PostgreSQL; its rows are written by :mod:`nova.store.jobs`, in the transaction that ends a job."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from nova.domain.asyncs import DestinationType
from nova.domain.identity import Scope
from nova.store.db import Connection, Database, Queries

sql = Queries("outbox")


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that is to be sent. ``attempts`` counts those that are known to have failed."""

    id: str
    scope: Scope
    source: str
    function_id: str
    type: DestinationType
    target: str
    caller: str
    depth: int
    event: bytes
    attempts: int


@dataclass(frozen=True, slots=True)
class SecretRow:
    secret: bytes
    created_at: datetime


class OutboxStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, delivery_id: str) -> Delivery | None:
        """None: it has ended, or is not there."""
        row = await self._db.one(sql.get, id=delivery_id)
        if row is None:
            return None
        return Delivery(
            id=row["id"],
            scope=Scope(row["tenant_id"], row["namespace"]),
            source=row["source"],
            function_id=row["function_id"],
            type=row["target_type"],
            target=row["target"],
            caller=row["caller"],
            depth=row["depth"],
            event=row["event"].encode(),
            attempts=row["attempts"],
        )

    async def tried(self, conn: Connection, delivery: Delivery, error: str) -> None:
        await conn.run(sql.tried, id=delivery.id, attempts=delivery.attempts + 1, error=error)

    async def end(
        self, conn: Connection, delivery_id: str, status: Literal["delivered", "dead"], attempts: int, error: str | None
    ) -> None:
        await conn.run(sql.end, id=delivery_id, status=status, attempts=attempts, error=error)

    async def delete_finished(self, before_ok: datetime, before_dead: datetime, limit: int) -> int:
        """Delete what was delivered before ``before_ok`` and what is dead since before ``before_dead``; how many."""
        return await self._db.run(sql.delete_finished, before_ok=before_ok, before_dead=before_dead, limit=limit)

    async def dead(self) -> dict[str, int]:
        """Events that could not be delivered, by tenant."""
        return {row["tenant"]: row["events"] for row in await self._db.fetch(sql.dead)}

    async def webhook_secret(
        self, scope: Scope, fresh: bytes, *, function: str | None = None, function_id: str | None = None
    ) -> SecretRow | None:
        """The secret of a function, by name or id; ``fresh`` becomes it when it has none. None: no such function."""
        key = {"tenant": scope.tenant, "namespace": scope.namespace, "function": function, "function_id": function_id}
        row = await self._db.one(sql.secret, **key)
        if row is None:
            await self._db.run(sql.make_secret, **key, fresh=fresh)
            row = await self._db.one(sql.secret, **key)
        return None if row is None else SecretRow(bytes(row["secret"]), row["created_at"])
