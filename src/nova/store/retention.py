"""Removing rows that are past their time, in batches, so that no statement holds many rows for long."""

from datetime import datetime
from typing import Literal

from nova.store.db import Database, Queries

AgedTable = Literal[
    "metrics_minute",
    "metrics_hour",
    "trace_spans",
    "audit_logs",
    "cluster_nodes",
    "schedule_runs",
    "idempotency_keys",
]
_q = Queries("retention")


class RetentionStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def delete(self, table: AgedTable, before: datetime, *, limit: int) -> int:
        """Remove rows older than ``before``, at most ``limit``; returns how many went."""
        return await self._db.run(getattr(_q, table), before=before, limit=limit)
