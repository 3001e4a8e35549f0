"""Spans of sampled traces at rest. A trace that crosses tenants is seen by each in the parts that are its own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from nova.domain.identity import Scope
from nova.store.db import Database, Queries

_q = Queries("spans")


@dataclass(frozen=True, slots=True)
class SpanRow:
    """One hop of a call. ``parent_id`` may be the span of a caller outside."""

    trace_id: str
    span_id: str
    parent_id: str | None
    request_id: UUID | None
    function_name: str | None
    name: str
    plane: str
    node: str
    started_at: datetime
    duration_us: int
    error: str | None
    attributes: dict[str, Any]


class SpanStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, spans: Sequence[tuple[Scope, SpanRow]]) -> None:
        """Write in one transaction; spans that are there already are left alone."""
        rows = [
            {
                **asdict(span),
                "tenant": scope.tenant,
                "namespace": scope.namespace,
                "attributes": Jsonb(span.attributes),
            }
            for scope, span in spans
        ]
        async with self._db.transaction() as conn:
            await conn.run_many(_q.insert, rows)

    async def trace(self, scope: Scope, trace_id: str, *, limit: int) -> list[SpanRow]:
        """The spans of a trace in one namespace, oldest first."""
        found = await self._db.fetch(
            _q.trace, tenant=scope.tenant, namespace=scope.namespace, trace_id=trace_id, limit=limit
        )
        return [SpanRow(**row) for row in found]

    async def trace_of(self, scope: Scope, request_id: UUID) -> str | None:
        """The id of the trace that a call belongs to."""
        row = await self._db.one(
            _q.trace_of_request, tenant=scope.tenant, namespace=scope.namespace, request_id=request_id
        )
        return row["trace_id"] if row else None
