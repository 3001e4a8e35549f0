"""Nodes of runs that wait for messages of topics.

The row is written with the node's state (:mod:`nova.store.workflow_writes`); whoever leads the duty hands messages over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.store.db import Connection, Database, Queries, Row
from nova.store.workflow_signals import tell

_sql = Queries("workflow_waits")
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class OpenWait:
    """``topic_id`` None: there is no topic of that name. ``next_sequence`` None: messages count that were published at or
    after ``since``."""

    run_id: str
    node_key: str
    scope: Scope
    topic: str
    filters: Any
    since: datetime
    topic_id: str | None
    next_sequence: int | None

    @property
    def key(self) -> Key:
        return self.run_id, self.node_key


async def page(db: Database, *, after: Key | None, limit: int) -> list[OpenWait]:
    """Those of runs that have not ended, by their keys, beginning after one."""
    run, key = after or (None, None)
    return [_wait(row) for row in await db.fetch(_sql.open, run=run, key=key, limit=limit)]


async def of_runs(db: Database, run_ids: Sequence[str]) -> list[OpenWait]:
    return [_wait(row) for row in await db.fetch(_sql.of_runs, runs=list(run_ids))]


async def hand_over(conn: Connection, wait: OpenWait, sequence: int, event: bytes) -> bool:
    """The node gets the message with this sequence; its run is told in this transaction. False: another node of the run got
    it, or this one does not wait any more."""
    await conn.fetch(_sql.hold, run=wait.run_id)
    taken = await conn.run(_sql.take, run=wait.run_id, key=wait.node_key, topic=wait.topic_id, sequence=sequence)
    return bool(taken) and await _tell(conn, wait, event)


async def give_up(conn: Connection, wait: OpenWait) -> None:
    """There is no such topic any more: the node fails."""
    await conn.fetch(_sql.hold, run=wait.run_id)
    if await conn.run(_sql.drop, run=wait.run_id, key=wait.node_key):
        await _tell(conn, wait, b"null")


async def advance(conn: Connection, waits: Sequence[tuple[OpenWait, int]]) -> None:
    """Remember up to where each has been looked at."""
    await conn.run(
        _sql.advance,
        runs=[wait.run_id for wait, _ in waits],
        keys=[wait.node_key for wait, _ in waits],
        topics=[wait.topic_id for wait, _ in waits],
        sequences=[sequence for _, sequence in waits],
    )


async def _tell(conn: Connection, wait: OpenWait, event: bytes) -> bool:
    try:
        await tell(
            conn,
            wait.scope,
            wait.run_id,
            "message",
            key=wait.node_key,
            payload=event,
            sender=f"topic:{wait.topic}",
        )
    except NovaError as error:
        if error.code not in ("invalid_state", "not_found"):  # the run has ended meanwhile
            raise
    return True


def _wait(row: Row) -> OpenWait:
    return OpenWait(
        row["run_id"],
        row["node_key"],
        Scope(row["tenant_id"], row["namespace"]),
        row["topic"],
        row["filters"],
        row["since"],
        row["topic_id"],
        row["next_sequence"],
    )
