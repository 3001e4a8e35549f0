"""Connections kept for a few prepared statements: one round trip each, sent through libpq, answered in the socket's callback.

For what callers wait for one by one, or what runs hundreds of times a second: a connection taken from the pool and given back,
a cursor, and a dumper for each array cost several times what the statement does. Whoever finds no connection free, or none that
knows the statement, goes the general way; :meth:`nova.store.db.Database.quick` does both.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
import structlog
from psycopg import abc, adapt
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from nova.clock import SYSTEM_CLOCK, Clock
from nova.service import Background

log = structlog.get_logger(__name__)

_GAP_S: Final = 1.0
"""Between two attempts to connect."""
OPTIONS: Final = "-c timezone=UTC -c enable_seqscan=off -c jit=off"
"""Of the server, for every connection of ours. A prepared plan is kept, and most are made while tables are empty: then reading
all of a table looks cheap, and is not an hour later. What has no index is read whole all the same."""
LINE_OPTIONS: Final = f"{OPTIONS} -c plan_cache_mode=force_generic_plan"
_TIMEOUT_S: Final = 30.0
_PARAMETER: Final = re.compile(r"%\((\w+)\)[sb]")

Done = Callable[[PGresult | psycopg.Error], None]
"""Called in the callback of a socket: it does not raise."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement that connections prepare when they are first asked for it, and the order of its parameters.

    ``sql`` is what :meth:`Database.fetch <nova.store.db.Database.fetch>` takes.
    """

    name: bytes
    sql: str
    prepare: bytes
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, name: str, sql: str) -> "Prepared":
        """Of a query as :class:`~nova.store.db.Queries` has it."""
        names = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        numbered = _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", sql)
        return cls(name.encode(), sql, f"PREPARE {name} AS {numbered}".encode(), names)

    def values(self, given: Mapping[str, Any]) -> list[bytes | None]:
        """In PostgreSQL's text format: text, numbers, times with a zone, None, and lists of those. Raises psycopg.DataError."""
        values = [_text(given[name]) for name in self.parameters]
        if any(value is not None and b"\0" in value for value in values):
            raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
        return values


def _text(value: Any) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return f"{{{','.join(_elements(value))}}}".encode()
    return str(value).encode()


def _elements(values: list[Any]) -> list[str]:
    """Most columns of a batch say the same in every row; those are written once."""
    if values and values.count(values[0]) == len(values):
        return [_element(values[0])] * len(values)
    return [_element(value) for value in values]


def _element(value: Any) -> str:
    if isinstance(value, str):
        if '"' in value or "\\" in value:
            value = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{value}"'
    if value is None:
        return "NULL"
    return f'"{value.isoformat()}"' if isinstance(value, datetime) else str(value)


class Lines:
    """Up to ``most`` connections, each for one statement at a time, opened when they are first of use and again when lost."""

    def __init__(
        self, dsn: str, name: str, *, most: int, timeout_s: float = _TIMEOUT_S, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """``name``: what PostgreSQL shows them as; ``timeout_s``: the server ends a statement after so long."""
        self._dsn = dsn
        self._name = name
        self._options = f"-c statement_timeout={int(timeout_s * 1000)} {LINE_OPTIONS}"
        self._most = most
        self._clock = clock
        self._free: list[_Line] = []
        self._lines: set[_Line] = set()
        self._opening = False
        self._closed = False
        self._not_before = 0.0
        self._reader: abc.Transformer = adapt.Transformer()
        self._tasks = Background(name)

    def ask(self, statement: Prepared, values: list[bytes | None], done: Done) -> bool:
        """Send; ``done`` hears the result, or why there is none. False, and nothing has been sent: no connection is ready."""
        for at in range(len(self._free) - 1, -1, -1):
            if statement.name in self._free[at].prepared:
                self._free.pop(at).send(statement, values, done)
                return True
        if self._free:
            self._free.pop().prepare(statement)
        else:
            self._open_another()
        return False

    async def fetch(self, statement: Prepared, given: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The rows; None, and nothing has been sent: no connection is ready.

        Raises psycopg.Error. After an OperationalError nobody knows whether it was done. A caller who is cancelled takes
        nothing back.
        """
        answered: asyncio.Future[PGresult] = asyncio.get_running_loop().create_future()

        def done(answer: PGresult | psycopg.Error) -> None:
            if answered.done():
                return
            if isinstance(answer, psycopg.Error):
                answered.set_exception(answer)
            else:
                answered.set_result(answer)

        if not self.ask(statement, statement.values(given), done):
            return None
        return _rows(await answered, self._reader)

    async def close(self) -> None:
        """Whoever waits for an answer hears that the connection is lost."""
        self._closed = True
        await self._tasks.close()
        for line in list(self._lines):
            line.lose()

    def _open_another(self) -> None:
        full = len(self._lines) >= self._most
        if full or self._opening or self._closed or self._clock.monotonic() < self._not_before:
            return
        self._opening = True
        self._tasks.spawn("open", self._open())

    async def _open(self) -> None:
        try:
            conn = await psycopg.AsyncConnection.connect(
                self._dsn, autocommit=True, application_name=self._name, connect_timeout=5, options=self._options
            )
        except psycopg.Error as error:
            self._not_before = self._clock.monotonic() + _GAP_S
            log.warning("no connection for prepared statements", use=self._name, error=str(error).strip())
        else:
            line = _Line(conn, self)
            self._lines.add(line)
            self._free.append(line)
        finally:
            self._opening = False

    def done(self, line: "_Line") -> None:
        """It can take another statement."""
        self._free.append(line)

    def lost(self, line: "_Line") -> None:
        """Its connection has ended."""
        self._not_before = self._clock.monotonic() + _GAP_S
        self._lines.discard(line)
        if line in self._free:
            self._free.remove(line)


class _Line:
    """One connection, and the statement that is under way on it."""

    def __init__(self, conn: psycopg.AsyncConnection, owner: Lines) -> None:
        self._conn = conn
        self._pg = conn.pgconn
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._fd = self._pg.socket
        self._asked: Done | None = None
        self._answer: PGresult | psycopg.Error | None = None
        self._lost = False
        self.prepared: set[bytes] = set()
        self._loop.add_reader(self._fd, self._on_readable)

    def send(self, statement: Prepared, values: list[bytes | None], done: Done) -> None:
        self._send(lambda: self._pg.send_query_prepared(statement.name, values), done)

    def prepare(self, statement: Prepared) -> None:
        """Free again when it knows the statement."""

        def done(answer: PGresult | psycopg.Error) -> None:
            if isinstance(answer, psycopg.Error):
                log.warning(
                    "a statement cannot be prepared", statement=statement.name.decode(), error=str(answer).strip()
                )
            else:
                self.prepared.add(statement.name)

        self._send(lambda: self._pg.send_query(statement.prepare), done)

    def _send(self, send: Callable[[], None], done: Done) -> None:
        self._asked = done
        self._answer = None
        try:
            send()
            self._flush()
        except psycopg.Error:
            self._loop.call_soon(self.lose)  # whoever asked hears of it after this, as always

    def _flush(self) -> None:
        """What does not fit into the socket follows when PostgreSQL reads."""
        if self._pg.flush():
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        try:
            self._flush()
        except psycopg.Error:
            self.lose()

    def _on_readable(self) -> None:
        try:
            self._pg.consume_input()
            while self._asked is not None and not self._pg.is_busy():
                result = self._pg.get_result()
                if result is None:
                    self._tell()
                elif result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
                    self._answer = result
                else:
                    self._answer = error_from_result(result)
        except psycopg.Error:
            self.lose()

    def _tell(self) -> None:
        if isinstance(self._answer, psycopg.OperationalError):  # the server ends the connection after it
            self.lose()
            return
        asked, self._asked = self._asked, None
        answer, self._answer = self._answer, None
        self._owner.done(self)
        if asked is not None and answer is not None:
            asked(answer)

    def lose(self) -> None:
        """Give the connection up. Idempotent: its descriptor may be somebody else's afterwards."""
        if self._lost:
            return
        self._lost = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._owner.lost(self)
        self._pg.finish()
        asked, self._asked = self._asked, None
        if asked is not None:
            error = self._answer if isinstance(self._answer, psycopg.Error) else None
            asked(error or psycopg.OperationalError("the connection is lost"))


def _rows(result: PGresult, reader: abc.Transformer) -> list[dict[str, Any]]:
    reader.set_pgresult(result)
    names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
    rows = reader.load_rows(0, result.ntuples, tuple)
    return [dict(zip(names, row, strict=True)) for row in rows]
