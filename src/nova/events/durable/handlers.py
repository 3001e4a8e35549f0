"""The routes of durable executions."""

import json
from collections.abc import Mapping
from typing import Any, get_args

from nova import payload
from nova.api.calls import CallError
from nova.api.durable import (
    CancelDurable,
    DurableEvent,
    DurableExecution,
    DurableItem,
    DurableQuery,
    DurableStep,
    FailCallback,
    SucceedCallback,
    Taken,
    WaitExecution,
)
from nova.api.table import Empty, Page, PageQuery
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.durable import (
    MAX_LIFE_S,
    MAX_OUTPUT,
    Execution,
    ExecutionStatus,
    Operation,
    callback_id,
    callback_of,
    error_text,
)
from nova.errors import invalid
from nova.http import paging
from nova.http.handler import Req, handles, identifier
from nova.payload import too_large
from nova.security import access
from nova.store.durable import DurableStore, no_execution
from nova.store.durable_waits import DurableWaits

_STATUSES = get_args(ExecutionStatus)


class DurableHandlers:
    """Serves ``nova.api.durable`` but for what begins an execution (:mod:`nova.execution.durable_handlers`)."""

    def __init__(self, store: DurableStore, waits: DurableWaits, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._waits = waits
        self._clock = clock

    # Looking

    @handles("function.durable")
    async def of_function(self, req: Req[Empty, DurableQuery]) -> Page[DurableItem]:
        query = req.query
        rows = await self._store.page(
            req.scope,
            req.params["name"],
            _statuses(query.status),
            query.name,
            query.since,
            before=paging.below(query.cursor),
            limit=query.limit + 1,
        )
        shown = [_item(row) for row in rows[: query.limit]]
        more = len(rows) > query.limit
        return Page[DurableItem](items=shown, next_cursor=paging.encode([shown[-1].id]) if more else None)

    @handles("durable.get")
    async def get(self, req: Req[Empty, WaitExecution]) -> DurableExecution:
        execution = await self._found(req, "async:read")
        if req.query.wait_s and execution.ended_at is None:
            until = self._clock.monotonic() + req.query.wait_s
            execution = await self._waits.end(req.scope, execution.id, until)
        return shown(execution, readable=_may_read(req, execution))

    @handles("durable.steps")
    async def steps(self, req: Req[Empty, PageQuery]) -> Page[DurableStep]:
        execution = await self._found(req, "async:read")
        start = paging.decode(req.query.cursor, int, int) or (0, 0)
        after, seen = int(start[0]), int(start[1])
        limit = req.query.limit
        found = await self._store.steps(execution.id, after=after, limit=limit + 1)
        readable = _may_read(req, execution)
        items = [
            _step(execution, operation, number, readable=readable)
            for number, operation in enumerate(found[:limit], seen + 1)
        ]
        more = paging.encode([found[limit - 1].place, seen + limit]) if len(found) > limit else None
        return Page[DurableStep](items=items, next_cursor=more)

    # Steering

    @handles("durable.send")
    async def send(self, req: Req[DurableEvent, Empty]) -> Taken:
        execution = await self._found(req, "async:manage")
        await self._store.event(req.scope, execution.id, req.body.name, _text(req, "payload"))
        return Taken()

    @handles("durable.cancel")
    async def cancel(self, req: Req[CancelDurable, Empty]) -> Taken:
        execution = await self._found(req, "async:manage")
        reason = req.body.reason or "the execution was cancelled"
        error = error_text({"ErrorType": "Nova.Cancelled", "ErrorMessage": reason})
        await self._store.cancel(req.scope, execution.id, error)
        return Taken()

    @handles("durable.retry")
    async def retry(self, req: Req[Empty, Empty]) -> Taken:
        execution = await self._found(req, "async:manage")
        lived = (execution.deadline_at - execution.created_at).total_seconds()
        await self._store.retry(req.scope, execution.id, min(lived, MAX_LIFE_S))
        return Taken()

    @handles("durable.callback_succeed")
    async def succeed(self, req: Req[SucceedCallback, Empty]) -> Taken:
        execution_id, operation_id = await self._callback(req)
        result = _text(req, "payload")
        await self._store.settle_callback(req.scope, execution_id, operation_id, "SUCCEEDED", result, None)
        return Taken()

    @handles("durable.callback_fail")
    async def fail(self, req: Req[FailCallback, Empty]) -> Taken:
        execution_id, operation_id = await self._callback(req)
        error = error_text({"ErrorType": req.body.type, "ErrorMessage": req.body.message})
        await self._store.settle_callback(req.scope, execution_id, operation_id, "FAILED", None, error)
        return Taken()

    @handles("durable.callback_heartbeat")
    async def heartbeat(self, req: Req[Empty, Empty]) -> Taken:
        execution_id, operation_id = await self._callback(req)
        await self._store.beat(req.scope, execution_id, operation_id)
        return Taken()

    async def _callback(self, req: Req[Any, Any]) -> tuple[str, str]:
        """Of an execution whose function the caller may manage. Raises ``not_found``, ``forbidden``."""
        execution_id, operation_id = callback_of(req.params["id"])
        await self._allowed(req, execution_id, "async:manage")
        return execution_id, operation_id

    async def _found(self, req: Req[Any, Any], permission: str) -> Execution:
        return await self._allowed(req, req.params["id"], permission)

    async def _allowed(self, req: Req[Any, Any], execution_id: str, permission: str) -> Execution:
        """One of a function that is closed to the caller is as unknown as one that never was."""
        execution = await self._store.get(req.scope, identifier("durable execution", execution_id[:128]))
        if not access.allowed(req.identity, "async:read", execution.function):
            raise no_execution(execution_id)
        if permission != "async:read":
            access.require(req.identity, permission, execution.function)
        return execution


def shown(execution: Execution, *, readable: bool) -> DurableExecution:
    return DurableExecution(
        id=execution.id,
        function=execution.function,
        version=execution.version,
        name=execution.name,
        status=execution.status,
        steps=execution.steps,
        wake_at=execution.wake_at,
        created_at=execution.created_at,
        ended_at=execution.ended_at,
        input=payload.decode(execution.input) if readable else None,
        output=_json(execution.output) if readable else None,
        error=_error(execution.error),
        caller=execution.caller,
        deadline_at=execution.deadline_at,
    )


def _item(row: Mapping[str, Any]) -> DurableItem:
    named = {"id": str(row["id"]), "function": row["function_name"]}
    same = ("version", "name", "status", "steps", "wake_at", "created_at", "ended_at")
    return DurableItem.model_validate(named | {name: row[name] for name in same})


def _step(execution: Execution, operation: Operation, seq: int, *, readable: bool) -> DurableStep:
    ended = operation.ended_at
    waits = operation.type == "CALLBACK" and operation.status == "STARTED" and execution.ended_at is None
    return DurableStep.model_validate(
        {
            "seq": seq,
            "id": operation.id,
            "parent": operation.parent_id,
            "name": operation.name,
            "kind": operation.type.lower(),
            "status": operation.status.lower(),
            "attempt": operation.attempt,
            "output": _json(operation.result) if readable else None,
            "error": _error(operation.error),
            "wake_at": operation.wake_at,
            "callback_id": callback_id(execution.id, operation.id) if waits else None,
            "started_at": operation.started_at,
            "duration_ms": None if ended is None else round((ended - operation.started_at).total_seconds() * 1000, 3),
        }
    )


def _json(text: str | None) -> Any:
    """What a library wrote: mostly JSON, and else a text."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _error(text: str | None) -> CallError | None:
    if text is None:
        return None
    told = payload.decode(text)
    return CallError(type=told["ErrorType"], message=told["ErrorMessage"], stack=told.get("StackTrace") or [])


def _may_read(req: Req[Any, Any], execution: Execution) -> bool:
    return access.allowed(req.identity, "payload:read", execution.function)


def _text(req: Req[Any, Any], field: str) -> str:
    """A member of the body as JSON. Raises ``payload_too_large``."""
    text = json.dumps(req.raw_body.get(field), ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > MAX_OUTPUT:
        raise too_large(MAX_OUTPUT)
    return text


def _statuses(text: str | None) -> list[str] | None:
    if text is None:
        return None
    wanted = [part.strip() for part in text.split(",")]
    if unknown := [part for part in wanted if part not in _STATUSES]:
        raise invalid("status", f"{unknown[0][:32]!r} is none of {', '.join(_STATUSES)}")
    return wanted
