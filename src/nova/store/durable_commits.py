"""Connections on which lone steps are committed: one prepared statement, one round trip, one flush of PostgreSQL's log.

It is what durable functions do most, and a handler waits for each. A connection taken from the pool and given back, and a
cursor for each statement, cost several times what the statement does. So it is sent through libpq here, and its answer is
read in the callback of the socket.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final

import psycopg
import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.durable import MAX_OPERATIONS
from nova.service import Background
from nova.store.durable_rows import sql
from nova.store.durable_runs import Checkpoint

log = structlog.get_logger(__name__)

_LINES: Final = 2
"""Connections at most, each for one step at a time; steps beyond them gather and share a transaction."""
_GAP_S: Final = 1.0
"""Between two attempts to connect."""
_OPTIONS: Final = "-c statement_timeout=30000 -c enable_seqscan=off -c jit=off -c plan_cache_mode=force_generic_plan"
_NAME: Final = b"nova_step"
_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_NAMES: Final[tuple[str, ...]] = tuple(dict.fromkeys(_PARAMETER.findall(sql.checkpoint_one)))
_PREPARE: Final = f"PREPARE {_NAME.decode()} AS " + _PARAMETER.sub(
    lambda found: f"${_NAMES.index(found[1]) + 1}", sql.checkpoint_one
)


Done = Callable[[int | None], None]
"""Called in the callback of a socket: it does not raise."""


class StepCommits:
    """Commits steps on connections of its own, which it opens when they are first of use and again when they are lost."""

    def __init__(self, dsn: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._dsn = dsn
        self._clock = clock
        self._free: list[_Line] = []
        self._lines: set[_Line] = set()
        self._opening = False
        self._closed = False
        self._not_before = 0.0
        self._tasks = Background("step commits")

    def commit(self, one: Checkpoint, done: Done) -> bool:
        """Begin to commit a lone step that has succeeded; ``done`` hears the new revision of the execution, or None. False, and
        None: write it in the general way, which also tells why it is refused.

        That way is right whatever happened here: an update that is recorded already changes nothing.
        """
        if len(one.updates) != 1 or one.updates[0].status != "SUCCEEDED":
            return False
        if not self._free:
            self._open_another()
            return False
        parameters = _parameters(one)
        self._free.pop().send(parameters, done)
        return True

    async def close(self) -> None:
        """Whoever waits is told to write in the general way."""
        self._closed = True
        await self._tasks.close()
        for line in list(self._lines):
            line.lose()

    def _open_another(self) -> None:
        full = len(self._lines) >= _LINES
        if full or self._opening or self._closed or self._clock.monotonic() < self._not_before:
            return
        self._opening = True
        self._tasks.spawn("open", self._open())

    async def _open(self) -> None:
        try:
            conn = await psycopg.AsyncConnection.connect(
                self._dsn, autocommit=True, application_name="nova steps", connect_timeout=5, options=_OPTIONS
            )
            try:
                await conn.execute(_PREPARE.encode())
            except BaseException:
                await conn.close()
                raise
        except psycopg.Error as error:
            self._not_before = self._clock.monotonic() + _GAP_S
            log.warning("no connection for durable steps", error=str(error).strip())
        else:
            line = _Line(conn, self)
            self._lines.add(line)
            self._free.append(line)
        finally:
            self._opening = False

    def done(self, line: "_Line") -> None:
        """It can take another step."""
        self._free.append(line)

    def lost(self, line: "_Line") -> None:
        """Its connection has ended."""
        self._not_before = self._clock.monotonic() + _GAP_S
        self._lines.discard(line)
        if line in self._free:
            self._free.remove(line)


class _Line:
    """One connection, and the step that is under way on it."""

    def __init__(self, conn: psycopg.AsyncConnection, owner: StepCommits) -> None:
        self._conn = conn
        self._pg = conn.pgconn
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._fd = self._pg.socket
        self._asked: Done | None = None
        self._rev: int | None = None
        self._lost = False
        self._loop.add_reader(self._fd, self._on_readable)

    def send(self, parameters: list[bytes | None], done: Done) -> None:
        """``done`` hears the revision that the statement gives; None: it gave none, or the connection is lost."""
        self._asked = done
        self._rev = None
        try:
            self._pg.send_query_prepared(_NAME, parameters)
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
                elif result.status != psycopg.pq.ExecStatus.TUPLES_OK:
                    self._refused(result.error_message.decode("utf-8", "replace"))
                elif result.ntuples:
                    self._rev = int(result.get_value(0, 0) or 0)
        except psycopg.Error:
            self.lose()

    def _tell(self) -> None:
        asked, self._asked = self._asked, None
        self._owner.done(self)
        if asked is not None:
            asked(self._rev)

    def _refused(self, message: str) -> None:
        """The statement itself failed. The general way will tell whether that is the step's fault."""
        log.warning("a durable step was not committed on its own connection", error=message.strip())
        self.lose()

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
            asked(None)


def _parameters(one: Checkpoint) -> list[bytes | None]:
    update = one.updates[0]
    values = {
        "most": MAX_OPERATIONS,
        "execution": one.execution,
        "function": one.function_id,
        "epoch": one.epoch,
        "id": update.id,
        "parent": update.parent_id,
        "name": update.name,
        "type": update.type,
        "sub_type": update.sub_type,
        "status": update.status,
        "tries": update.tries,
        "result": update.result,
        "replay": update.replay,
        "started_ms": update.started_ms,
    }
    return [None if (value := values[name]) is None else str(value).encode() for name in _NAMES]
