"""Runs of workflows and their approvals as people look at them. Nothing here is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nova.domain.identity import Scope
from nova.store.db import Database, Queries, Row

THE_NODE = -1
"""The item of a row that is about the node itself."""
_sql = Queries("workflow_views")


@dataclass(frozen=True, slots=True)
class RunFilter:
    """What a list may ask for; None does not restrict."""

    statuses: Sequence[str] | None = None
    since: datetime | None = None
    version: int | None = None
    workflow: str | None = None


@dataclass(frozen=True, slots=True)
class Inside:
    """What there is of a run beside its own row. Rows are as in the tables."""

    definition: dict[str, Any]
    nodes: Sequence[Row]
    attempts: Sequence[Row]
    progress: Sequence[Row]
    approvals: dict[str, str]
    """node_key → id of the approval that it waits for"""
    children: dict[str, str]
    """node_key → id of the run that it started last"""


class WorkflowViews:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def run(self, scope: Scope, run_id: str) -> Row | None:
        return await self._db.one(_sql.run, id=run_id, tenant=scope.tenant, namespace=scope.namespace)

    async def runs_of_workflow(
        self, workflow_id: str, wanted: RunFilter, *, before: str | None, limit: int
    ) -> list[Row]:
        """Newest first, without inputs and outputs."""
        return await self._db.fetch(
            _sql.runs_of_workflow,
            workflow_id=workflow_id,
            statuses=_list(wanted.statuses),
            version=wanted.version,
            since=wanted.since,
            before=before,
            limit=limit,
        )

    async def runs(self, scope: Scope, wanted: RunFilter, *, before: str | None, limit: int) -> list[Row]:
        """Those of every workflow."""
        return await self._db.fetch(
            _sql.runs_of_scope,
            tenant=scope.tenant,
            namespace=scope.namespace,
            statuses=_list(wanted.statuses),
            workflow=wanted.workflow,
            since=wanted.since,
            before=before,
            limit=limit,
        )

    async def inside(self, run: Row) -> Inside:
        """The nodes of a run, as of one moment."""
        async with self._db.transaction() as conn:
            await conn.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            version = await conn.one(_sql.definition, workflow_id=run["workflow_id"], version=run["version"])
            return Inside(
                definition=version["definition"] if version else {"nodes": []},
                nodes=await conn.fetch(_sql.nodes, id=run["id"]),
                attempts=await conn.fetch(_sql.attempts, id=run["id"], node=None, first=THE_NODE, last=THE_NODE),
                progress=await conn.fetch(_sql.progress, id=run["id"]),
                children={
                    row["parent_node"]: row["id"]
                    for row in await conn.fetch(_sql.children, id=run["id"], node=None, first=THE_NODE, last=THE_NODE)
                },
                approvals={row["node_key"]: row["id"] for row in await conn.fetch(_sql.approvals_of_run, id=run["id"])},
            )

    async def definition(self, run: Row) -> dict[str, Any]:
        """Of the version that a run is of."""
        row = await self._db.one(_sql.definition, workflow_id=run["workflow_id"], version=run["version"])
        return row["definition"] if row else {"nodes": []}

    async def items(
        self, run_id: str, node: str, *, statuses: Sequence[str] | None, after: int, limit: int
    ) -> list[Row]:
        """What a map did for each item with a number above ``after``, in their order."""
        return await self._db.fetch(
            _sql.items, id=run_id, node=node, statuses=_list(statuses), after=after, limit=limit
        )

    async def attempts(self, run_id: str, node: str, first: int, last: int) -> list[Row]:
        """Calls for the items from ``first`` to ``last`` of a map."""
        return await self._db.fetch(_sql.attempts, id=run_id, node=node, first=first, last=last)

    async def children(self, run_id: str, node: str, first: int, last: int) -> dict[int, str]:
        """The newest run of each of the items from ``first`` to ``last`` of a map."""
        rows = await self._db.fetch(_sql.children, id=run_id, node=node, first=first, last=last)
        return {row["parent_item"]: row["id"] for row in rows}

    async def changes(self, run_id: str, after: int, *, limit: int) -> list[Row]:
        """What nodes came to after a revision of the run, in the order in which it happened: at least ``limit`` of it, if there
        is as much, and all of the last revision among it."""
        rows = await self._db.fetch(_sql.changes, id=run_id, after=after, limit=limit)
        return sorted(rows, key=lambda row: (row["revision"], row["item"]))

    async def approval(self, scope: Scope, approval_id: str) -> Row | None:
        return await self._db.one(_sql.approval, id=approval_id, tenant=scope.tenant, namespace=scope.namespace)

    async def approvals(
        self, scope: Scope, statuses: Sequence[str], *, run: str | None, before: str | None, limit: int
    ) -> list[Row]:
        """Newest first."""
        return await self._db.fetch(
            _sql.approvals,
            tenant=scope.tenant,
            namespace=scope.namespace,
            statuses=list(statuses),
            run=run,
            before=before,
            limit=limit,
        )


def _list(values: Sequence[str] | None) -> list[str] | None:
    return None if values is None else list(values)
