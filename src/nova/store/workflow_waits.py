"""Nodes of runs that wait for messages of topics.

The row is written with the node's state (:mod:`nova.store.workflow_writes`); whoever leads the duty hands messages over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.ids import new_id
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


async def hand_over(conn: Connection, found: Sequence[tuple[OpenWait, int, bytes]]) -> set[Key]:
    """Each node gets the message with this sequence, and its run is told, in this transaction; no run twice the same one.

    The keys of those that have it. The others do not wait any more, or another node of their run got it before.
    """
    await conn.fetch(_sql.hold, runs=[wait.run_id for wait, _, _ in found])
    rows = await conn.fetch(
        _sql.take,
        ids=[new_id() for _ in found],
        runs=[wait.run_id for wait, _, _ in found],
        keys=[wait.node_key for wait, _, _ in found],
        topics=[wait.topic_id for wait, _, _ in found],
        sequences=[sequence for _, sequence, _ in found],
        events=[event.decode() for _, _, event in found],
        senders=[f"topic:{wait.topic}" for wait, _, _ in found],
    )
    return {(row["run_id"], row["node_key"]) for row in rows}


async def give_up(conn: Connection, wait: OpenWait) -> None:
    """There is no such topic any more: the node fails."""
    await conn.fetch(_sql.hold, runs=[wait.run_id])
    if not await conn.run(_sql.drop, run=wait.run_id, key=wait.node_key):
        return
    try:
        await tell(conn, wait.scope, wait.run_id, "message", key=wait.node_key, sender=f"topic:{wait.topic}")
    except NovaError as error:
        if error.code not in ("invalid_state", "not_found"):  # the run has ended meanwhile
            raise


async def advance(conn: Connection, waits: Sequence[tuple[OpenWait, int]]) -> None:
    """Remember up to where each has been looked at."""
    await conn.run(
        _sql.advance,
        runs=[wait.run_id for wait, _ in waits],
        keys=[wait.node_key for wait, _ in waits],
        topics=[wait.topic_id for wait, _ in waits],
        sequences=[sequence for _, sequence in waits],
    )


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
