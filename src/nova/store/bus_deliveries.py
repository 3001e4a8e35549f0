"""Deliveries in PostgreSQL: one row for each message of a subscription, written when its first attempt has ended.

A delivery's id says what it is of, ``<subscription>-<sequence>-<generation>``: so it is the same whoever delivers again after a
crash, and receivers recognise a repetition by it.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from nova.domain.identity import Scope
from nova.store.db import Connection, Database, Queries, Row
from nova.store.lines import Prepared

Status = Literal["queued", "succeeded", "dlq", "skipped"]
_sql = Queries("bus_deliveries")
_RECORD = Prepared.of("nova_record", _sql.record)


@dataclass(frozen=True, slots=True)
class Ended:
    """What is to be known of a delivery now. ``failed`` (a JSON list) is added to its history.

    ``delay_s`` until the next attempt, when it is queued. ``attempts`` counts executions so far.
    """

    subscription_id: str
    sequence: int
    generation: int
    status: Status
    attempts: int
    replay: bool
    ordering_key: str | None
    delay_s: float = 0.0
    started_at: datetime | None = None
    duration_ms: float | None = None
    request_id: str | None = None
    error: str | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """How far a subscription has come, in a generation; ``expired`` messages were past their retention."""

    subscription_id: str
    generation: int
    cursor: int
    expired: int = 0


@dataclass(frozen=True, slots=True)
class Queued:
    """A row that waits; due in ``due_s`` seconds."""

    sequence: int
    generation: int
    attempts: int
    replay: bool
    ordering_key: str | None
    due_s: float


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One delivery as users see it."""

    subscription_id: str
    topic: str
    sequence: int
    generation: int
    status: Status
    attempts: int
    replay: bool
    ordering_key: str | None
    next_run_at: datetime | None
    started_at: datetime | None
    duration_ms: float | None
    request_id: str | None
    error: str | None
    history: list[dict[str, Any]]
    ended_at: datetime | None

    @property
    def id(self) -> str:
        return delivery_id(self.subscription_id, self.sequence, self.generation)


Place = tuple[str, int, int]
"""Subscription, sequence and generation."""


def delivery_id(subscription_id: str, sequence: int, generation: int) -> str:
    return f"{subscription_id}-{sequence}-{generation}"


def place_of(text: str) -> Place | None:
    """What a delivery's id says; None: it is none."""
    parts = text.rsplit("-", 2)
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts[1:]):
        return None
    try:
        place = (str(uuid.UUID(parts[0])), int(parts[1]), int(parts[2]))
    except ValueError:
        return None
    return place if place[2] < 1 << 31 else None


class DeliveryStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, owner: str, fences: dict[str, int], ended: Sequence[tuple[str, Ended]]) -> frozenset[str]:
        """Write outcomes, each with the duty under whose fence it is written; the duties that are still the owner's."""
        rows = await self._db.quick(
            _RECORD,
            owner=owner,
            duties=list(fences),
            fences=list(fences.values()),
            touched=sorted({end.subscription_id for _, end in ended}),
            item_duties=[duty for duty, _ in ended],
            subscriptions=[end.subscription_id for _, end in ended],
            sequences=[end.sequence for _, end in ended],
            generations=[end.generation for _, end in ended],
            statuses=[end.status for _, end in ended],
            attempts=[end.attempts for _, end in ended],
            replays=[end.replay for _, end in ended],
            keys=[end.ordering_key for _, end in ended],
            delays=[float(end.delay_s) for _, end in ended],
            started=[end.started_at for _, end in ended],
            durations=[end.duration_ms for _, end in ended],
            requests=[end.request_id for _, end in ended],
            errors=[end.error for _, end in ended],
            failed=[end.failed for _, end in ended],
        )
        return frozenset(row["duty"] for row in rows)

    async def advance(self, owner: str, fences: dict[str, int], moved: Sequence[tuple[str, Moved]]) -> frozenset[str]:
        """Write cursors, likewise. One that a seek has moved meanwhile is left alone."""
        rows = await self._db.fetch(
            _sql.advance,
            owner=owner,
            duties=list(fences),
            fences=list(fences.values()),
            cursor_duties=[duty for duty, _ in moved],
            ids=[move.subscription_id for _, move in moved],
            generations=[move.generation for _, move in moved],
            cursors=[move.cursor for _, move in moved],
            expired=[move.expired for _, move in moved],
        )
        return frozenset(row["duty"] for row in rows)

    async def queued(self, subscription_id: str, limit: int) -> list[Queued]:
        return [Queued(**row) for row in await self._db.fetch(_sql.queued, id=subscription_id, limit=limit)]

    async def blocked(self, subscription_id: str) -> set[str]:
        """The ordering keys of dead deliveries."""
        return {row["ordering_key"] for row in await self._db.fetch(_sql.blocked, id=subscription_id)}

    async def ahead(self, subscription_id: str, generation: int, cursor: int, limit: int) -> set[int]:
        """Sequences beyond the cursor that have a row already."""
        rows = await self._db.fetch(_sql.ahead, id=subscription_id, generation=generation, cursor=cursor, limit=limit)
        return {row["sequence"] for row in rows}

    async def last_of(self, conn: Connection, subscription_id: str) -> int:
        row = await conn.one(_sql.last_of, id=subscription_id)
        return int(row["last"]) if row is not None and row["last"] is not None else 0

    async def count_queued(self, conn: Connection, subscription_id: str) -> int:
        row = await conn.one(_sql.count_queued, id=subscription_id)
        assert row is not None
        return int(row["rows"])

    async def add(
        self, conn: Connection, subscription_id: str, generation: int, places: Collection[tuple[int, str | None]]
    ) -> int:
        """Queue messages (sequence and ordering key) as deliveries of a replay; how many."""
        return await conn.run(
            _sql.add,
            id=subscription_id,
            generation=generation,
            sequences=[sequence for sequence, _ in places],
            keys=[key for _, key in places],
        )

    async def page(
        self, subscription_id: str, *, status: str | None, after: tuple[int, int] | None, limit: int
    ) -> list[DeliveryRecord]:
        """Newest message first."""
        sequence, generation = after or (None, None)
        rows = await self._db.fetch(
            _sql.page, id=subscription_id, status=status, sequence=sequence, generation=generation, limit=limit
        )
        return [_record(row) for row in rows]

    async def get(self, scope: Scope, place: Place) -> DeliveryRecord | None:
        row = await self._db.one(
            _sql.get,
            id=place[0],
            sequence=place[1],
            generation=place[2],
            tenant=scope.tenant,
            namespace=scope.namespace,
        )
        return None if row is None else _record(row)

    async def dead(
        self, topic_id: str, *, after: tuple[datetime, str, int, int] | None, limit: int
    ) -> list[DeliveryRecord]:
        """Dead letters of all subscriptions of a topic, newest first."""
        before, subscription_id, sequence, generation = after or (None, None, None, None)
        rows = await self._db.fetch(
            _sql.dead,
            topic_id=topic_id,
            before=before,
            id=subscription_id,
            sequence=sequence,
            generation=generation,
            limit=limit,
        )
        return [_record(row) for row in rows]

    async def retry(self, conn: Connection, place: Place) -> bool:
        """Try again now what waits or is dead, the dead with all its attempts; False: it is neither."""
        return bool(await conn.run(_sql.retry, id=place[0], sequence=place[1], generation=place[2]))

    async def skip(self, conn: Connection, place: Place) -> bool:
        return bool(await conn.run(_sql.skip, id=place[0], sequence=place[1], generation=place[2]))

    async def retry_dead(self, conn: Connection, subscription_id: str, limit: int) -> int:
        return await conn.run(_sql.retry_dead, id=subscription_id, limit=limit)

    async def purge_dead(self, conn: Connection, subscription_id: str, limit: int) -> int:
        return await conn.run(_sql.purge_dead, id=subscription_id, limit=limit)

    async def delete_old(self, before: datetime, dead_before: datetime, limit: int) -> int:
        return await self._db.run(_sql.delete_old, before=before, dead_before=dead_before, limit=limit)


def _record(row: Row) -> DeliveryRecord:
    return DeliveryRecord(
        subscription_id=str(row["subscription_id"]),
        topic=row["topic"],
        sequence=row["sequence"],
        generation=row["generation"],
        status=row["status"],
        attempts=row["attempts"],
        replay=row["replay"],
        ordering_key=row["ordering_key"],
        next_run_at=row["next_run_at"],
        started_at=row["started_at"],
        duration_ms=row["duration_ms"],
        request_id=row["request_id"],
        error=row["error"],
        history=row["history"] or [],
        ended_at=row["ended_at"],
    )
