"""Triggers in PostgreSQL, how they do, and how far their sources are.

Whoever changes a trigger notifies :attr:`Channel.TRIGGERS` in that transaction, with its id, scope and name.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from nova import payload as payloads
from nova.domain.asyncs import AsyncPolicy
from nova.domain.identity import Scope
from nova.domain.trigger import State, TriggerRecord, TriggerSettings, TriggerStatus, TriggerType
from nova.ids import new_id
from nova.store.db import Connection, Database, Queries, Row
from nova.store.listen import Channel

_sql = Queries("triggers")
_SETTINGS = tuple(field.name for field in fields(TriggerSettings))
_POLICY = AsyncPolicy()


@dataclass(frozen=True, slots=True)
class TriggerFilter:
    """What a list may ask for; None does not restrict."""

    type: TriggerType | None = None
    target: str | None = None
    enabled: bool | None = None


@dataclass(slots=True)
class Report:
    """What is to be added to a trigger's status. ``state`` None: it is not for the reporter to say, nor are error and lag."""

    trigger_id: str
    state: State | None = None
    last_error: str | None = None
    lag: int | None = None
    received: int = 0
    processed: int = 0
    failed: int = 0
    last_event_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that its function did not take. ``error`` and ``attempts`` are JSON, as jobs have them."""

    scope: Scope
    function: str
    qualifier: str | None
    payload: bytes
    attempt: int
    source: str
    caller: str
    attempts: bytes
    error: bytes
    request_id: str
    started_at: datetime


class TriggerStore:
    """Readers take the connection of a running transaction, or one of their own."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, scope: Scope, trigger_id: str) -> TriggerRecord | None:
        row = await self._db.one(_sql.get, id=trigger_id, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else _record(row)

    async def by_name(self, scope: Scope, name: str) -> TriggerRecord | None:
        row = await self._db.one(_sql.get_by_name, name=name, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else _record(row)

    async def lock(self, conn: Connection, scope: Scope, trigger_id: str) -> TriggerRecord | None:
        """The trigger, which nobody else changes before the transaction ends."""
        row = await conn.one(_sql.lock, id=trigger_id, tenant=scope.tenant, namespace=scope.namespace)
        return None if row is None else _record(row)

    async def page(self, scope: Scope, wanted: TriggerFilter, *, before: str | None, limit: int) -> list[TriggerRecord]:
        """Newest first, beginning after the id ``before``."""
        rows = await self._db.fetch(
            _sql.list, tenant=scope.tenant, namespace=scope.namespace, before=before, limit=limit, **asdict(wanted)
        )
        return [_record(row) for row in rows]

    async def insert(
        self,
        conn: Connection,
        trigger_id: str,
        scope: Scope,
        type: TriggerType,
        settings: TriggerSettings,
        created_by: str,
    ) -> TriggerRecord | None:
        """None when the name is taken."""
        row = await conn.one(
            _sql.insert,
            id=trigger_id,
            tenant=scope.tenant,
            namespace=scope.namespace,
            type=type,
            created_by=created_by,
            **_columns(settings),
        )
        if row is None:
            return None
        await _announce(conn, record := _record(row))
        return record

    async def update(
        self, conn: Connection, before: TriggerRecord, settings: TriggerSettings, *, elsewhere: bool
    ) -> TriggerRecord:
        """``elsewhere``: it is another source from now on, of which nothing was read. Raises psycopg's UniqueViolation when
        the new name is taken."""
        row = await conn.one(_sql.update, id=before.id, elsewhere=elsewhere, **_columns(settings))
        if row is None:
            raise LookupError(before.id)
        if before.settings.name != settings.name:
            await _announce(conn, before)
        await _announce(conn, record := _record(row))
        return record

    async def delete(self, conn: Connection, record: TriggerRecord) -> None:
        scope = record.scope
        await conn.run(_sql.delete, id=record.id, tenant=scope.tenant, namespace=scope.namespace)
        await _announce(conn, record)

    async def statuses(self, ids: Sequence[str]) -> dict[str, TriggerStatus]:
        """As the processes in charge reported them; for a trigger that nobody is in charge of, as it was then."""
        rows = await self._db.fetch(_sql.statuses, ids=list(ids))
        return {row.pop("id"): TriggerStatus(**row) for row in rows}

    # What runs the triggers reads and writes

    async def enabled(self, ids: Sequence[str] | None = None) -> list[TriggerRecord]:
        """Those that are to run, of all tenants that are active; ``ids``: only if they are among these."""
        rows = await self._db.fetch(_sql.enabled, ids=None if ids is None else list(ids))
        return [_record(row) for row in rows]

    async def report(self, reports: Sequence[Report]) -> None:
        rows = [asdict(report) for report in reports]
        names = ("state", "last_error", "lag", "received", "processed", "failed", "last_event_at")
        columns = {f"{name}s": [row[name] for row in rows] for name in names}
        await self._db.run(_sql.report, ids=[row["trigger_id"] for row in rows], **columns)

    async def position(self, trigger_id: str) -> bytes | None:
        row = await self._db.one(_sql.position, id=trigger_id)
        return None if row is None else bytes(row["position"])


async def save_position(conn: Connection, trigger_id: str, position: bytes) -> None:
    """In a transaction that the fence of the trigger's duty has checked."""
    await conn.run(_sql.save_position, id=trigger_id, position=position)


async def dead_letter(conn: Connection, letter: DeadLetter) -> str | None:
    """The id of the job in the dead-letter queue; None when there is no such function."""
    row = await conn.one(
        _sql.dead_letter,
        id=new_id(),
        tenant=letter.scope.tenant,
        namespace=letter.scope.namespace,
        function=letter.function,
        qualifier=letter.qualifier,
        payload=letter.payload.decode(),
        attempt=letter.attempt,
        backoff_base_ms=_POLICY.backoff_base_ms,
        backoff_max_ms=_POLICY.backoff_max_ms,
        max_age_s=_POLICY.max_age_s,
        source=letter.source,
        caller=letter.caller,
        attempts=letter.attempts.decode(),
        error=letter.error.decode(),
        request_id=letter.request_id,
        started_at=letter.started_at,
    )
    return None if row is None else str(row["id"])


async def _announce(conn: Connection, record: TriggerRecord) -> None:
    scope = record.scope
    said = {"id": record.id, "tenant": scope.tenant, "namespace": scope.namespace, "name": record.settings.name}
    await conn.notify(Channel.TRIGGERS, payloads.encode(said).decode())


def _columns(settings: TriggerSettings) -> dict[str, Any]:
    columns = {name: getattr(settings, name) for name in _SETTINGS}
    columns["config"] = Jsonb(dict(settings.config))
    columns["filters"] = Jsonb(list(settings.filters))
    return columns


def _record(row: Row) -> TriggerRecord:
    return TriggerRecord(
        id=str(row["id"]),
        scope=Scope(row["tenant_id"], row["namespace"]),
        type=row["type"],
        settings=TriggerSettings(**{name: row[name] for name in _SETTINGS}),
        revision=row["revision"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
