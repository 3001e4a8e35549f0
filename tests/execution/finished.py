"""Finished calls for the tests of what is recorded about them."""

from typing import Any

from nova.domain.call import CallRequest, CallResult, Phases
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import DEFAULT_NAMESPACE, DEFAULT_TENANT
from nova.errors import FunctionError
from nova.ids import new_id
from nova.store.db import Database
from tests.execution.fakes import make_call, make_snapshot


def make_result(call: CallRequest, **changes: Any) -> CallResult:
    values: dict[str, Any] = {
        "request_id": call.request_id,
        "version": 1,
        "output": b'"ok"',
        "error": None,
        "duration_us": 1500,
        "cold_start": False,
        "instance_id": "instance-1",
        "phases": Phases(queue_us=100, handler_us=1400),
    }
    if changes.get("error") is not None:
        values["output"] = None
    return CallResult(**{**values, **changes})


def boom(kind: str = "ValueError", message: str = "bad date") -> FunctionError:
    return FunctionError(kind, message, ("main.py:12 in handler",))


def finished(snapshot: FunctionSnapshot, payload: bytes = b"{}", **changes: Any) -> tuple[CallRequest, CallResult]:
    """A call of ``snapshot`` and its result, with a request id of its own."""
    call = make_call(snapshot.name, payload, scope=snapshot.scope, request_id=new_id())
    return call, make_result(call, **changes)


async def deployed(
    database: Database, name: str = "hello", *, tenant: str = DEFAULT_TENANT, **changes: Any
) -> FunctionSnapshot:
    """A function that has a row, and its snapshot."""
    snapshot = make_snapshot(name, function_id=new_id(), **changes)
    await database.run(
        "INSERT INTO functions (id, tenant_id, namespace, name, data, etag, created_by)"
        " VALUES (%(id)s, %(tenant)s, %(namespace)s, %(name)s, '{}', 'e', 'test')",
        id=snapshot.function_id,
        tenant=tenant,
        namespace=DEFAULT_NAMESPACE,
        name=name,
    )
    return snapshot
