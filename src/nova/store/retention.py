"""Removing rows that are past their time, in batches, so that no statement holds many rows for long."""

from datetime import datetime
from typing import Literal, cast

from nova.store.db import Database, Queries

_InOrder = Literal["metrics_minute", "metrics_hour", "trace_spans"]
"""Tables whose rows lie in the order of their age: they have no index that keeps it."""
AgedTable = Literal["audit_logs", "cluster_nodes", "schedule_runs", "idempotency_keys"] | _InOrder
_IN_ORDER = frozenset({"metrics_minute", "metrics_hour", "trace_spans"})
_START = "(0,0)"
_q = Queries("retention")


class RetentionStore:
    """Knows where the last batch of a table ended, so that the next one does not read again what has just been emptied."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._ends: dict[_InOrder, str] = {}

    async def delete(self, table: AgedTable, before: datetime, *, limit: int) -> int:
        """Remove rows older than ``before``, at most ``limit``; returns how many went. Fewer mean that there are no more."""
        if table in _IN_ORDER:
            return await self._delete_on(cast(_InOrder, table), before, limit)
        return await self._db.run(getattr(_q, table), before=before, limit=limit)

    async def _delete_on(self, table: _InOrder, before: datetime, limit: int) -> int:
        after = self._ends.pop(table, _START)
        row = await self._db.one(getattr(_q, table), before=before, limit=limit, after=after)
        gone = int(row["rows"]) if row else 0
        if row and gone == limit:
            self._ends[table] = row["upto"]
        return gone
