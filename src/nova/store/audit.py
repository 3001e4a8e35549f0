"""The audit trail: one row for every change and for every refused permission or login. Rows are only ever added."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from psycopg.types.json import Jsonb

from nova.domain.identity import Scope
from nova.ids import new_id
from nova.store.db import Database, Queries

_sql = Queries("audit")
Outcome = Literal["success", "denied"]


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """Who did what to which resource. ``details`` names fields, never their contents."""

    scope: Scope
    actor: str
    action: str
    resource: str
    outcome: Outcome
    request_id: str
    address: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class AuditStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def write(self, record: AuditRecord) -> None:
        await self._db.run(
            _sql.insert_audit,
            id=new_id(),
            tenant=record.scope.tenant,
            namespace=record.scope.namespace,
            actor=record.actor,
            action=record.action,
            resource=record.resource,
            outcome=record.outcome,
            address=record.address,
            request_id=record.request_id,
            details=Jsonb(dict(record.details)),
        )
