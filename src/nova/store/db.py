"""The one way to PostgreSQL: a pool, named parameters, transactions, and queries that live in ``queries/*.sql``.

Statements are named in their files (``-- name: get_function``) and loaded once; nothing builds SQL from strings at run
time. Outages become ``dependency_unavailable`` so that callers can be told to come back.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, Self

import psycopg
import structlog
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from nova.errors import NovaError, storage_full
from nova.service import Background
from nova.store.lines import OPTIONS, Lines, Prepared

log = structlog.get_logger(__name__)
Row = dict[str, Any]
_NAME = re.compile(r"^-- name: (\w+)\s*(?:--.*)?$", re.MULTILINE)
_LINES = 4
"""Connections for :meth:`Database.quick`."""
_unavailable = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
)


class Queries:
    """The statements of one ``queries/<noun>.sql``, as attributes."""

    def __init__(self, noun: str) -> None:
        text = resources.files("nova.store").joinpath(f"queries/{noun}.sql").read_text()
        parts = _NAME.split(text)
        self._noun = noun
        self._by_name = {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}

    def __getattr__(self, name: str) -> str:
        try:
            return self._by_name[name]
        except KeyError:
            raise AttributeError(f"queries/{self._noun}.sql has no query {name!r}") from None


class Connection:
    """One connection inside a transaction."""

    def __init__(self, raw: psycopg.AsyncConnection[Row]) -> None:
        self.raw = raw
        self.notified: list[tuple[str, str]] = []
        """channel and payload of what was sent here"""

    async def fetch(self, sql: str, /, **params: Any) -> list[Row]:
        return await (await self.raw.execute(sql, params)).fetchall()

    async def one(self, sql: str, /, **params: Any) -> Row | None:
        """The first row, or None."""
        return await (await self.raw.execute(sql, params)).fetchone()

    async def run(self, sql: str, /, **params: Any) -> int:
        """Execute; the number of rows touched."""
        return (await self.raw.execute(sql, params)).rowcount

    async def run_many(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        async with self.raw.cursor() as cursor:
            await cursor.executemany(sql, rows)

    async def notify(self, channel: str, payload: str) -> None:
        """Tell every listener when this transaction commits."""
        await self.raw.execute("SELECT pg_notify(%s, %s)", (channel, payload))
        self.notified.append((channel, payload))


class Database:
    """A pool of connections. Every method takes one from it; :meth:`transaction` keeps it for a block.

    Beside it, up to four connections for :meth:`quick`.
    """

    def __init__(self, dsn: str, *, min_conns: int = 2, max_conns: int = 20, statement_timeout_s: float = 30) -> None:
        self.dsn = dsn
        self._background = Background("database")
        self.on_commit: Callable[[str, str], None] | None = None
        """Gets each notification of this process as soon as it is committed, before the server delivers it: whoever is
        answered after a change meets it in his next request here."""
        self._lines = Lines(dsn, "nova lines", most=_LINES, timeout_s=statement_timeout_s)
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Row]] = AsyncConnectionPool(
            dsn,
            min_size=min_conns,
            max_size=max_conns,
            open=False,
            timeout=5,
            reconnect_timeout=0,
            check=None,
            connection_class=psycopg.AsyncConnection[Row],
            kwargs={
                "row_factory": dict_row,
                "autocommit": True,
                "application_name": "nova",
                "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} {OPTIONS}",
            },
        )

    async def start(self) -> None:
        await self._pool.open(wait=True, timeout=10)

    async def close(self) -> None:
        await self._background.close()
        await self._lines.close()
        await self._pool.close()

    def refresh(self) -> None:
        """The server was away and is back: replace the connections it took with it, before anybody is given one, and
        serve those who wait for one. Returns at once."""
        self._background.spawn("refresh", self._pool.check())

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode."""
        try:
            async with self._pool.connection() as raw:
                yield Connection(raw)
        except _unavailable as exc:
            raise unavailable(exc) from exc

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """All or nothing."""
        try:
            async with self._pool.connection() as raw:
                conn = Connection(raw)
                async with raw.transaction():
                    yield conn
        except _unavailable as exc:
            raise unavailable(exc) from exc
        if self.on_commit is not None:
            for channel, payload in conn.notified:
                self.on_commit(channel, payload)

    async def fetch(self, sql: str, /, **params: Any) -> list[Row]:
        async with self.connection() as conn:
            return await conn.fetch(sql, **params)

    async def one(self, sql: str, /, **params: Any) -> Row | None:
        async with self.connection() as conn:
            return await conn.one(sql, **params)

    async def run(self, sql: str, /, **params: Any) -> int:
        async with self.connection() as conn:
            return await conn.run(sql, **params)

    async def quick(self, statement: Prepared, /, **params: Any) -> list[Row]:
        """As :meth:`fetch`, at a fraction of its cost, for the few statements that run hundreds of times a second.

        A caller who is cancelled takes nothing back.
        """
        try:
            rows = await self._lines.fetch(statement, params)
        except _unavailable as exc:
            raise unavailable(exc) from exc
        return await self.fetch(statement.sql, **params) if rows is None else rows

    async def ping(self) -> bool:
        """Does PostgreSQL answer?"""
        try:
            await self.one("SELECT 1 AS ok")
        except NovaError:
            return False
        return True


def unavailable(exc: BaseException) -> NovaError:
    if isinstance(exc, psycopg.errors.DiskFull):
        log.error("postgresql has no room", error=str(exc).strip())
        return storage_full("the database")
    log.warning("postgresql does not answer", error=str(exc).strip())
    return NovaError("dependency_unavailable", "the database does not answer", retry_after_s=1)
