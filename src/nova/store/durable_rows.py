"""Rows of durable executions as what they mean, and the one way in which an operation ends from outside its run."""

from typing import Any, Final

from nova.domain.durable import Execution, Operation
from nova.domain.identity import Scope
from nova.store.db import Connection, Queries, Row

KIND: Final = "durable"
"""Of work: an execution that has something to do."""
CALL_KIND: Final = "durable_call"
"""Of work: a function that an execution calls."""
sql = Queries("durable")


async def settle(
    conn: Connection,
    execution_id: str,
    operation_id: str,
    kind: str,
    status: str,
    result: str | None,
    error: str | None,
    rev: int,
) -> bool:
    return (
        await conn.run(
            sql.settle,
            execution=execution_id,
            id=operation_id,
            type=kind,
            status=status,
            result=result,
            error=error,
            rev=rev,
        )
        > 0
    )


def execution_of(row: Row) -> Execution:
    return Execution(
        id=str(row["id"]),
        scope=Scope(row["tenant_id"], row["namespace"]),
        function_id=str(row["function_id"]),
        function=row["function_name"],
        chain=tuple(row["chain"]),
        **{name: row[name] for name in _SAME},
    )


_SAME: Final = (
    "version",
    "name",
    "status",
    "input",
    "output",
    "error",
    "caller",
    "source",
    "traceparent",
    "tracestate",
    "epoch",
    "rev",
    "steps",
    "lost",
    "wake_at",
    "created_at",
    "deadline_at",
    "ended_at",
)
_OPERATION: Final = tuple(field for field in Operation.__dataclass_fields__)


def operation_of(row: Row) -> Operation:
    return Operation(**{name: row[name] for name in _OPERATION})


def of_scope(scope: Scope) -> dict[str, Any]:
    return {"tenant": scope.tenant, "namespace": scope.namespace}
