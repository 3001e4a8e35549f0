"""Removing rows that are past their time, in batches, so that no statement holds many rows for long."""

from datetime import datetime
from typing import Literal, cast

from nova.ids import first_id
from nova.store.db import Database, Queries

_InOrder = Literal["metrics_minute", "metrics_hour", "trace_spans"]
"""Tables whose rows lie in the order of their age: they have no index that keeps it."""
AgedTable = Literal["audit_logs", "cluster_nodes", "schedule_runs", "idempotency_keys"] | _InOrder
_IN_ORDER = frozenset({"metrics_minute", "metrics_hour", "trace_spans"})
_START = "(0,0)"
_NO_ID = "00000000-0000-0000-0000-000000000000"
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


class JobRetention:
    """Jobs that have ended. Knows how far the last batch got, as :class:`RetentionStore` does."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._after = _NO_ID

    async def delete(self, before_ok: datetime, before_dlq: datetime, limit: int) -> int:
        """Remove jobs that succeeded or were cancelled before ``before_ok``, letters that are dead since before
        ``before_dlq``, and those whose own time is over; at most ``limit``. Returns how many went; fewer mean that there
        are no more."""
        row = await self._db.one(_q.jobs_kept_until, limit=limit)
        gone = int(row["rows"]) if row else 0
        if gone == limit:
            return gone
        after, self._after, limit = self._after, _NO_ID, limit - gone
        row = await self._db.one(
            _q.jobs,
            after=after,
            first=first_id(max(before_ok, before_dlq)),
            before_ok=before_ok,
            before_dlq=before_dlq,
            limit=limit,
        )
        if row and row["rows"] == limit:
            self._after = row["upto"]
        return gone + (int(row["rows"]) if row else 0)
