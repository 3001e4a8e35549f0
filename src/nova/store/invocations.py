"""Call records at rest: written in batches, read as pages and as a feed, kept in one partition per UTC day."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from psycopg import sql

from nova.domain.identity import Scope
from nova.store import callrows
from nova.store.db import Connection, Database, Queries, Row

EVERY_FUNCTION = "*"
_MAX_ANNOUNCED = 150
"""function ids that fit into one notification (8000 bytes)"""
_LOCK_TIMEOUT_MS = 2000
"""How long writers may have to wait behind a day that is being dropped."""
_COPY = f"COPY invocation_logs ({callrows.COLUMNS}) FROM STDIN (FORMAT BINARY)"
_COPY_STAGED = f"COPY staged_calls ({callrows.COLUMNS}) FROM STDIN (FORMAT BINARY)"
_DAY = re.compile(r"invocation_logs_(\d{8})")
_q = Queries("invocations")


@dataclass(frozen=True, slots=True)
class LogFilter:
    """What records of one function to list; None filters nothing. ``q`` is text in the prints."""

    request_id: UUID | None = None
    status: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    version: int | None = None
    cold_start: bool | None = None
    q: str | None = None


@dataclass(frozen=True, slots=True)
class CallFilter:
    """What records of one scope to list."""

    function: str | None = None
    status: str | None = None
    outcome: str | None = None
    runtime: str | None = None
    version: int | None = None
    caller: str | None = None
    trace_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    min_duration_ms: float | None = None
    cold_start: bool | None = None
    q: str | None = None


@dataclass(frozen=True, slots=True)
class Before:
    """Where a page goes on: after the record with these sort values."""

    created_at: datetime
    id: UUID


class InvocationStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    # Writing

    async def append(self, rows: Sequence[bytes], functions: Collection[str]) -> None:
        """Write encoded rows (:mod:`nova.store.callrows`) in one transaction and announce whose they are.

        Writers take turns, so ``seq`` grows in the order in which rows become visible. What was written is on disk.
        """
        async with self._db.transaction() as conn:
            await self._announce(conn, functions)
            await _copy(conn, _COPY, rows)

    async def append_once(self, rows: Sequence[bytes], functions: Collection[str]) -> int:
        """Like :meth:`append`, but rows that are there already are left alone; for what may have been written before.

        Returns the number of rows that were new.
        """
        async with self._db.transaction() as conn:
            await self._announce(conn, functions)
            await conn.run(_q.stage)
            await _copy(conn, _COPY_STAGED, rows)
            return await conn.run(_q.unstage)

    async def _announce(self, conn: Connection, functions: Collection[str]) -> None:
        told = ",".join(functions) if 0 < len(functions) <= _MAX_ANNOUNCED else EVERY_FUNCTION
        await conn.one(_q.serialise_and_announce, functions=told)

    # Reading

    async def function_id(self, scope: Scope, name: str) -> UUID | None:
        row = await self._db.one(_q.function_id, tenant=scope.tenant, namespace=scope.namespace, name=name)
        return row["id"] if row else None

    async def of_function(
        self, function_id: UUID, wanted: LogFilter, *, limit: int, before: Before | None = None
    ) -> list[Row]:
        """Records without payloads, newest first."""
        return await self._db.fetch(
            _q.function_logs, function_id=function_id, limit=limit, **_params(wanted), **_position(before)
        )

    async def of_scope(
        self, scope: Scope, wanted: CallFilter, *, limit: int, before: Before | None = None
    ) -> list[Row]:
        """Records without prints and payloads, newest first."""
        return await self._db.fetch(
            _q.scope_calls,
            tenant=scope.tenant,
            namespace=scope.namespace,
            limit=limit,
            **_params(wanted),
            **_position(before),
        )

    async def get(self, scope: Scope, request_id: UUID) -> Row | None:
        """One whole record; ``input`` and ``output`` as JSON text."""
        return await self._db.one(_q.call, id=request_id, tenant=scope.tenant, namespace=scope.namespace)

    async def feed_position(self, function_id: UUID, since: datetime | None) -> int:
        """The ``seq`` after which a feed begins: now, or at the first record since a moment."""
        query = _q.feed_end if since is None else _q.feed_start
        row = await self._db.one(query, function_id=function_id, since=since)
        return int(row["seq"]) if row else 0

    async def feed(
        self, function_id: UUID, after: int, *, request_id: UUID | None, since: datetime | None, limit: int
    ) -> list[Row]:
        """Records in the order of their commits."""
        return await self._db.fetch(
            _q.feed, function_id=function_id, after=after, request_id=request_id, since=since, limit=limit
        )

    async def figures(self, function_id: UUID, since: datetime, until: datetime) -> list[Row]:
        """Counts and latencies: the first row over every version (``version`` None), then one per version."""
        return await self._db.fetch(_q.figures, function_id=function_id, since=since, until=until)

    # Keeping

    async def prepare_days(self, today: date, ahead: int) -> list[date]:
        """Make the partitions of today and ``ahead`` days more; returns the days that were made."""
        made = []
        async with self._db.transaction() as conn:
            await conn.one(_q.lock_partitions)
            existing = {day for day, _ in await _day_partitions(conn)}
            for offset in range(ahead + 1):
                day = today + timedelta(days=offset)
                if day not in existing:
                    await _make_partition(conn, day)
                    made.append(day)
        return made

    async def purge(self, keep_from: date) -> tuple[int, int]:
        """Remove every record of days before ``keep_from``: the number of partitions dropped, and of rows that went.

        Dropping a day keeps everybody from the table for a moment, so its rows are counted before, and whoever reads the table
        for long is not waited for: then it raises ``dependency_unavailable``, what is gone is gone, and it can be asked again.
        """
        async with self._db.transaction() as conn:
            await conn.run("SET LOCAL statement_timeout = 0")
            old = [name for day, name in await _day_partitions(conn) if day < keep_from]
            rows = await conn.run(_q.purge_default, before=_midnight(keep_from))
            held = {name: await _count(conn, name) for name in old}
        for name, count in held.items():
            async with self._db.transaction() as conn:
                await conn.one(_q.lock_partitions)
                await conn.run(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
                await conn.raw.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
            rows += count
        return len(old), rows


async def _count(conn: Connection, table: str) -> int:
    found = await conn.raw.execute(sql.SQL("SELECT count(*) AS rows FROM {}").format(sql.Identifier(table)))
    row = await found.fetchone()
    return int(row["rows"]) if row else 0


async def _copy(conn: Connection, statement: str, rows: Sequence[bytes]) -> None:
    async with conn.raw.cursor() as cursor, cursor.copy(statement) as copy:
        await copy.write(b"".join((callrows.HEADER, *rows, callrows.TRAILER)))


async def _day_partitions(conn: Connection) -> list[tuple[date, str]]:
    found = []
    for row in await conn.fetch(_q.partitions):
        if match := _DAY.fullmatch(row["name"]):
            found.append((datetime.strptime(match[1], "%Y%m%d").date(), row["name"]))
    return found


async def _make_partition(conn: Connection, day: date) -> None:
    """Records that fell into the default partition meanwhile move along: attaching refuses to leave them behind."""
    start, stop = _midnight(day), _midnight(day + timedelta(days=1))
    parts = {
        "name": sql.Identifier(f"invocation_logs_{day:%Y%m%d}"),
        "start": sql.Literal(start),
        "stop": sql.Literal(stop),
    }
    await conn.raw.execute("LOCK TABLE invocation_logs IN SHARE ROW EXCLUSIVE MODE")
    await conn.raw.execute(sql.SQL("CREATE TABLE {name} (LIKE invocation_logs INCLUDING ALL)").format(**parts))
    held = await conn.one(_q.default_holds, start=start, stop=stop)
    if held and held["held"]:
        move = (
            "WITH moved AS (DELETE FROM invocation_logs_default"
            " WHERE created_at >= {start} AND created_at < {stop} RETURNING *)"
            " INSERT INTO {name} SELECT * FROM moved"
        )
        await conn.raw.execute(sql.SQL(move).format(**parts))
    attach = "ALTER TABLE invocation_logs ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({stop})"
    await conn.raw.execute(sql.SQL(attach).format(**parts))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)


def _params(wanted: LogFilter | CallFilter) -> dict[str, Any]:
    return {name: getattr(wanted, name) for name in wanted.__dataclass_fields__}


def _position(before: Before | None) -> dict[str, Any]:
    return {"before": before.created_at if before else None, "before_id": before.id if before else None}
