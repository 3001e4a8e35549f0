"""A PostgreSQL database of the user's: its notifications, or the rows of a table.

Notifications are at most once: what is sent while nobody listens is gone. A table is read by a column that grows; a row is
delivered when every transaction that could still write an earlier one has ended, so none is passed over.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, Field, model_validator

from nova import payload
from nova.api.table import Model
from nova.events.triggers.address import dial
from nova.events.triggers.base import Context, SecretUrl, Sink, SourceError, SourceEvent, body
from nova.ids import new_id
from nova.security.egress import Guard

OVERLAP_S = 5.0
"""A row is looked for again for so long after its successors were delivered: numbers are drawn before they are written."""
MAX_REMEMBERED = 10_000
"""Rows in that time; with more, the older ones are taken for complete sooner."""
_PORT = "5432"
_READ = 500
"""Rows at once."""
_PRIMARY_KEY = """
SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
 WHERE i.indrelid = %(table)s::text::regclass AND i.indisprimary ORDER BY a.attnum"""
_ROWS = """
SELECT md5({row}::text || {cursor}::text), {cursor}::text, coalesce({cursor} > %(high)s, true),
       convert_to(row_to_json(t)::text, 'UTF8')
  FROM {table} t
 WHERE (%(whole)s OR {cursor} >= %(low)s) AND {cursor} IS NOT NULL
   AND age(t.xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::xid)
 ORDER BY {cursor} LIMIT %(limit)s"""
"""A row whose writer is older than every transaction that still runs: none of those can write an earlier one any more."""
_NEWEST = """
SELECT md5({row}::text || {cursor}::text), {cursor}::text FROM {table} t
 WHERE {cursor} IS NOT NULL ORDER BY {cursor} DESC LIMIT %(limit)s"""
_DEFAULTS: dict[str, Any] = {"application_name": "nova trigger", "connect_timeout": 10, "password": ""}
_OURS: dict[str, Any] = {
    "autocommit": True,
    # nobody connects with what belongs to whoever runs this process: passwords of its home, certificates, tickets
    "passfile": "/dev/null",
    "sslcertmode": "disable",
    "gssencmode": "disable",
    # a server that vanished without a word is noticed
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_ALLOWED = frozenset({"host", "port", "dbname", "user", "password", "sslmode", "connect_timeout", "application_name"})
"""Parts of a DSN. Others read files of this machine."""
PLACE = ("dsn", "channel", "table", "cursor_column")


def _dsn(text: str) -> str:
    try:
        parts = conninfo_to_dict(text)
    except psycopg.Error:
        raise ValueError("a PostgreSQL URL, such as postgresql://user:password@host/database") from None
    if unknown := sorted(parts.keys() - _ALLOWED):
        raise ValueError(f"may not set {unknown[0]}; allowed are {', '.join(sorted(_ALLOWED))}")
    hosts = str(parts.get("host") or "").split(",")
    if not all(host and not host.startswith(("/", "@")) for host in hosts):
        raise ValueError("must name a host; sockets of this machine are not for triggers")
    ports = str(parts.get("port") or _PORT).split(",")
    if not all(not port or port.isdecimal() for port in ports) or len(ports) not in (1, len(hosts)):
        raise ValueError("must have one port, or one for each host")
    return text


Identifier = Annotated[str, Field(min_length=1, max_length=63)]


class Config(Model):
    """Either ``channel``, or ``table`` and ``cursor_column``. ``table`` may have its schema before a dot. ``start``: a table's
    rows from its beginning, or those that come from now on."""

    dsn: Annotated[SecretUrl, AfterValidator(_dsn)]
    channel: Identifier | None = None
    table: Annotated[str, Field(pattern=r"^[^.\x00]{1,63}(\.[^.\x00]{1,63})?$")] | None = None
    cursor_column: Identifier | None = None
    poll_s: float = Field(5.0, ge=0.1, le=3600)
    start: Literal["latest", "earliest"] = "latest"

    @model_validator(mode="after")
    def _one_of_two(self) -> "Config":
        if (self.channel is None) == (self.table is None):
            raise ValueError("say either channel, or table and cursor_column")
        if (self.table is None) != (self.cursor_column is None):
            raise ValueError("table and cursor_column belong together")
        if self.channel is not None and self.model_fields_set & {"poll_s", "start"}:
            raise ValueError("poll_s and start are for tables: a channel has no past")
        return self


class Done(msgspec.Struct, array_like=True):
    """A row that was delivered."""

    cursor: str
    at: float


class Place(msgspec.Struct):
    """How far a table is read: rows from ``low`` on, but for those that are ``done``.

    ``marks``: at that time everything up to that value was done that could be seen. ``low`` follows them by :data:`OVERLAP_S`.
    """

    low: str | None = None
    marks: list[Done] = []
    done: dict[str, Done] = {}

    @property
    def high(self) -> str | None:
        return self.marks[-1].cursor if self.marks else self.low

    def advance(self, now: float) -> None:
        while self.marks and (now - self.marks[0].at > OVERLAP_S or len(self.done) > MAX_REMEMBERED):
            mark = self.marks.pop(0)
            self.low = mark.cursor
            # whatever was done by then has no greater value; what has the same is read again, and must be known
            self.done = {k: row for k, row in self.done.items() if row.at > mark.at or row.cursor == mark.cursor}

    def dump(self) -> bytes:
        return zlib.compress(msgspec.json.encode(self))


def _load(position: bytes) -> Place:
    return msgspec.json.decode(zlib.decompress(position), type=Place)


def make(config: Config, context: Context) -> "Postgres":
    return Postgres(config, context)


class Postgres:
    def __init__(self, config: Config, context: Context) -> None:
        self._config = config
        self._context = context
        self._waiting = 0

    async def check(self) -> None:
        async with self._connected() as conn:
            if self._config.table is not None:
                await conn.execute(await self._query(conn), _values(Place(), 0))

    async def lag(self) -> int | None:
        return self._waiting if self._config.table is not None else None

    async def run(self, sink: Sink) -> None:
        async with self._connected() as conn:
            if self._config.channel is not None:
                await self._listen(conn, self._config.channel, sink)
            else:
                await self._read(conn, sink)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Errors of the server leave as :class:`SourceError`, without the DSN."""
        where = await reachable(self._context.guard, conninfo_to_dict(self._config.dsn))
        try:
            conn = await psycopg.AsyncConnection.connect("", **(_DEFAULTS | where | _OURS))
        except psycopg.Error as error:
            raise SourceError(f"cannot connect: {_first_line(error)}") from None
        try:
            async with conn:
                yield conn
        except psycopg.Error as error:
            raise SourceError(_first_line(error)) from None

    # Notifications

    async def _listen(self, conn: psycopg.AsyncConnection[Any], channel: str, sink: Sink) -> None:
        await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        sink.connected()
        room = asyncio.Semaphore(self._context.window)
        async with asyncio.TaskGroup() as group:
            try:
                async for notification in conn.notifies():
                    await room.acquire()
                    data = {"channel": channel, "op": "notify", "row": body(notification.payload.encode())}
                    event = SourceEvent(new_id(), "nova.trigger.postgres", self._context.source, payload.encode(data))
                    group.create_task(self._deliver(sink, event, room))
            except psycopg.Error as error:
                raise SourceError(_first_line(error)) from None
            raise SourceError("the connection was closed")

    # A table

    async def _read(self, conn: psycopg.AsyncConnection[Any], sink: Sink) -> None:
        query = await self._query(conn)
        kept = await sink.position()
        place = Place() if kept is None else _load(kept)
        if kept is None and self._config.start == "latest":
            place = await self._newest(conn)
            await sink.save(place.dump())
        sink.connected()
        while True:
            limit = len(place.done) + _READ
            rows = await (await conn.execute(query, _values(place, limit))).fetchall()
            fresh = [row for row in rows if row[0] not in place.done]
            self._waiting = len(fresh)
            if fresh:
                await self._hand_on(fresh, sink)
                now = self._now()
                place.done |= {key: Done(cursor, now) for key, cursor, _, _ in fresh}
                if fresh[-1][2]:
                    place.marks.append(Done(fresh[-1][1], now))
            if fresh or place.marks:
                place.advance(self._now())
                await sink.save(place.dump())
            if not fresh:
                await self._context.clock.sleep(self._config.poll_s)

    async def _hand_on(self, rows: Sequence[tuple[str, str, bool, bytes]], sink: Sink) -> None:
        room = asyncio.Semaphore(self._context.window)
        async with asyncio.TaskGroup() as group:
            for key, cursor, _, row in rows:
                await room.acquire()
                data = b'{"table":%s,"op":"upsert","row":%s}' % (payload.encode(self._config.table), row)
                event = SourceEvent(f"{cursor}-{key[:16]}", "nova.trigger.postgres", self._context.source, data)
                group.create_task(self._deliver(sink, event, room))

    async def _newest(self, conn: psycopg.AsyncConnection[Any]) -> Place:
        """What is there is done. A row that is written at this moment may have a smaller number than the greatest one."""
        query = await self._query(conn, newest=True)
        rows = await (await conn.execute(query, {"limit": _READ})).fetchall()
        now = self._now()
        if not rows:
            return Place()
        done = {key: Done(cursor, now) for key, cursor in rows}
        return Place(rows[-1][1], [Done(rows[0][1], now)], done)

    async def _query(self, conn: psycopg.AsyncConnection[Any], *, newest: bool = False) -> sql.Composed:
        """A row is named by its primary key if the table has one, else by all that is in it."""
        assert self._config.table is not None
        assert self._config.cursor_column is not None
        table = sql.Identifier(*self._config.table.split("."))
        named = await conn.execute(_PRIMARY_KEY, {"table": table.as_string(conn)})
        columns = [sql.Identifier("t", name) for (name,) in await named.fetchall()]
        parts = {
            "table": table,
            "cursor": sql.Identifier("t", self._config.cursor_column),
            "row": sql.SQL("ROW({})").format(sql.SQL(", ").join(columns)) if columns else sql.SQL("t"),
        }
        return sql.SQL(_NEWEST if newest else _ROWS).format(**parts)

    async def _deliver(self, sink: Sink, event: SourceEvent, room: asyncio.Semaphore) -> None:
        try:
            await sink.deliver(event)
        finally:
            self._waiting -= 1
            room.release()

    def _now(self) -> float:
        return self._context.clock.unix()


async def reachable(guard: Guard, parts: dict[str, Any]) -> dict[str, Any]:
    """The parts of a DSN with the addresses to dial; names stay, for the certificates. Raises :class:`SourceError`.

    Of several hosts those that may not be reached, or are not known, are left out while there are others.
    """
    hosts = str(parts["host"]).split(",")
    ports = str(parts.get("port") or _PORT).split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    found: list[tuple[str, str, str]] = []
    failure = SourceError("the DSN names no host")
    for host, port in zip(hosts, ports, strict=True):
        try:
            found.append((host, await dial(guard, host, int(port or _PORT)), port or _PORT))
        except SourceError as error:
            failure = error
    if not found:
        raise failure
    names, addresses, dialled = zip(*found, strict=True)
    return {**parts, "host": ",".join(names), "hostaddr": ",".join(addresses), "port": ",".join(dialled)}


def _values(place: Place, limit: int) -> dict[str, Any]:
    return {"whole": place.low is None, "low": place.low, "high": place.high, "limit": limit}


def _first_line(error: psycopg.Error) -> str:
    """Without the lines in which the server repeats the statement, and psycopg the address."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
