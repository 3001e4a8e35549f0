"""Time series at rest: rolled up from call records into minutes and hours, read without touching a record."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal
from uuid import UUID

from psycopg.errors import InvalidParameterValue

from nova.domain.identity import Scope
from nova.errors import invalid
from nova.store import sketch
from nova.store.db import Connection, Database, Queries

NAMESPACE = UUID(int=0)
"""Stands in place of a function's id for all functions of a namespace together."""
_q = Queries("series")


@dataclass(frozen=True, slots=True)
class Point:
    """The calls of one bucket that begins at ``ts``. ``cells`` are pairs of a :mod:`~nova.store.sketch` cell and calls."""

    ts: datetime
    invocations: int
    errors: int
    cold_starts: int
    duration_sum_ms: float
    cells: Sequence[tuple[int, int]]

    @property
    def average_ms(self) -> float:
        return self.duration_sum_ms / self.invocations

    def percentile_ms(self, share: float) -> float | None:
        """Within 5 % of the value over the records themselves, from 0.1 ms on."""
        return sketch.percentile(self.cells, share)


@dataclass(frozen=True, slots=True)
class LocalHour:
    """The calls of one hour of one day of a time zone."""

    day: date
    hour: int
    invocations: int
    errors: int


class SeriesStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def roll_up(self, check: Callable[[Connection], Awaitable[None]], *, limit: int) -> int:
        """Add the next ``limit`` records, in the order of their commits, to the series; returns how far it got in ``seq``,
        or 0 when there was nothing new.

        Each record is added exactly once: the position moves in the same transaction, and is locked until its end.
        ``check`` comes first and may refuse by raising.
        """
        async with self._db.transaction() as conn:
            await check(conn)
            position = await conn.one(_q.position)
            after = position["seq"] if position else 0
            end = await conn.one(_q.batch_end, after=after, limit=limit)
            upto = end["seq"] if end else None
            if upto is None:
                return 0
            await conn.run(_q.roll_up, after=after, upto=upto, bounds=sketch.BOUNDS)
            await conn.run(_q.advance, seq=upto)
            return int(upto)

    async def function_id(self, scope: Scope, name: str) -> UUID | None:
        row = await self._db.one(_q.function_id, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return row["id"] if row else None

    async def points(
        self,
        scope: Scope,
        function_id: UUID,
        since: datetime,
        until: datetime,
        step: timedelta,
        source: Literal["minute", "hour"],
    ) -> list[Point]:
        """The buckets that have calls, in no order. ``step`` divides time from the Unix epoch on, in UTC."""
        rows = await self._db.fetch(
            _q.points,
            minutes=source == "minute",
            tenant=scope.tenant,
            namespace=scope.namespace,
            function_id=function_id,
            since=since,
            until=until,
            step=step,
        )
        return [
            Point(
                row["ts"],
                row["invocations"],
                row["errors"],
                row["cold_starts"],
                row["duration_sum_ms"],
                list(zip(row["cells"], row["calls"], strict=True)),
            )
            for row in rows
        ]

    async def local_hours(
        self, scope: Scope, function_id: UUID, since: datetime, until: datetime, timezone: str
    ) -> list[LocalHour]:
        """Hours that have calls, oldest first. An hour counts where it begins in ``timezone``, an IANA name.

        Raises ``validation_failed`` for a time zone that the database does not know.
        """
        try:
            rows = await self._db.fetch(
                _q.by_local_hour,
                tenant=scope.tenant,
                namespace=scope.namespace,
                function_id=function_id,
                since=since,
                until=until,
                timezone=timezone,
            )
        except InvalidParameterValue:
            raise invalid("timezone", "the database does not know it") from None
        return [LocalHour(row["day"], row["hour"], row["invocations"], row["errors"]) for row in rows]
