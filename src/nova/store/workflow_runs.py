"""Runs of workflows as they are in the database: claiming them, and what is known of those that are claimed.

How they begin is in :mod:`nova.store.workflow_begin`, what is written of them in :mod:`nova.store.workflow_writes`.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nova.domain.identity import Scope
from nova.store.db import Database, Queries, Row
from nova.store.workflow_begin import Parent

KIND = "run"
"""Of work that advances one run. The id of the row, and its subject, are the run's."""

sql = Queries("workflow_runs")


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run as it is when its process takes it. ``begun``: nodes have rows. ``told``: there may be something to read."""

    id: str
    scope: Scope
    workflow_id: str
    workflow: str
    version: int
    key: str | None
    status: str
    input: bytes
    ending: Any
    generation: int
    depth: int
    parent: Parent | None
    caller: str
    source: str
    traceparent: str | None
    tracestate: str | None
    deadline_at: datetime
    created_at: datetime
    on_failure: str
    limited: bool
    begun: bool
    told: bool
    attempt: int
    fence: int


class RunStore:
    """For the processes that work runs off."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claim(self, owner: str, batch: int, lease_s: float) -> tuple[list[ClaimedRun], bool]:
        """Up to ``batch`` runs that are due, leased to ``owner``. And: may there be more?"""
        rows = await self._db.fetch(sql.claim, owner=owner, batch=batch, lease_s=lease_s)
        if not rows:
            return [], False
        share = max(1, batch // rows[0]["lanes"])
        taken = Counter(row["tenant_id"] for row in rows)
        return [_claimed(row) for row in rows], rows[0]["lanes"] > batch or max(taken.values()) >= share

    async def definition(self, workflow_id: str, version: int) -> str | None:
        row = await self._db.one(sql.definition, workflow=workflow_id, version=version)
        return None if row is None else row["definition"]

    async def delete_finished(self, before: datetime, limit: int) -> int:
        """Runs that ended before then, with all they have; and deleted workflows that have none left."""
        gone = await self._db.run(sql.delete_finished, before=before, limit=limit)
        if gone < limit:
            await self._db.run(sql.delete_workflows, limit=limit)
        return gone

    async def children(self, run_id: str) -> frozenset[str]:
        """The runs that this one has started."""
        return frozenset(row["id"] for row in await self._db.fetch(sql.children, run=run_id))

    async def nodes(self, run_id: str) -> list[Row]:
        """What the run's nodes have come to so far."""
        return await self._db.fetch(sql.nodes, run=run_id)


def _claimed(row: Row) -> ClaimedRun:
    parent = row["parent_run_id"]
    return ClaimedRun(
        id=row["id"],
        scope=Scope(row["tenant_id"], row["namespace"]),
        workflow_id=row["workflow_id"],
        workflow=row["workflow_name"],
        version=row["version"],
        key=row["key"],
        status=row["status"],
        input=row["input"].encode(),
        ending=row["ending"],
        generation=row["generation"],
        depth=row["depth"],
        parent=None if parent is None else Parent(parent, row["parent_node"], row["parent_item"]),
        caller=row["caller"],
        source=row["source"],
        traceparent=row["traceparent"],
        tracestate=row["tracestate"],
        deadline_at=row["deadline_at"],
        created_at=row["created_at"],
        on_failure=row["on_failure"],
        limited=row["limited"],
        begun=row["begun"],
        told=row["told"],
        attempt=row["attempt"],
        fence=row["fence"],
    )
