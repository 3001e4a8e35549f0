"""Answers about finished calls: the logs of a function, the invocations of a scope, one call."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from nova import payload
from nova.api.invocations import (
    DEFAULT_TAIL,
    CallDetail,
    CallError,
    CallLog,
    Invocation,
    InvocationQuery,
    LogQuery,
    Prints,
    StreamQuery,
)
from nova.api.table import Empty, Page
from nova.domain.identity import Identity, Scope
from nova.domain.names import is_name
from nova.domain.outcome import outcome_of
from nova.errors import FunctionError, NovaError, invalid, not_found
from nova.execution.tail import LogFeed, Position
from nova.http import paging
from nova.http.handler import Req, handles
from nova.http.sse import Batch
from nova.security import access
from nova.store.db import Row
from nova.store.invocations import Before, CallFilter, InvocationStore, LogFilter

MAX_SHOWN_DEPTH = 100
"""levels of a payload in an answer"""
_DEFAULT_PAGE = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MADE = {"id", "function_id", "function", "error", "outcome", "handler_ms"}
_SAME = tuple(name for name in Invocation.model_fields if name not in _MADE)


class RecordHandlers:
    """``settle`` waits until what this process has recorded is readable: a caller finds the call that has just ended."""

    def __init__(self, store: InvocationStore, feed: LogFeed, settle: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._feed = feed
        self._settle = settle

    @handles("function.logs")
    async def logs(self, req: Req[Empty, LogQuery]) -> Page[CallLog]:
        query = req.query
        paged = query.limit is not None or query.cursor is not None
        if paged and query.tail is not None:
            raise invalid("tail", "cannot go with limit or cursor")
        name = req.params["name"]
        function_id = await known_function(self._store, req.scope, name)
        wanted = LogFilter(
            request_id=None if query.request_id is None else call_id(query.request_id),
            status=query.status,
            outcome=query.outcome,
            since=query.since,
            until=query.until,
            version=query.version,
            cold_start=query.cold_start,
            q=query.q,
        )
        limit = (query.limit or _DEFAULT_PAGE) if paged else (query.tail or DEFAULT_TAIL)
        before = _before(query.cursor)
        await self._settle()
        rows = await self._store.of_function(function_id, wanted, limit=limit + 1, before=before)
        if wanted.request_id is not None and not rows and before is None:
            await self._require_call_of(function_id, wanted.request_id)
        items = [CallLog(stdout=row["stdout"], stderr=row["stderr"], **_common(row)) for row in rows[:limit]]
        return Page[CallLog](items=items, next_cursor=_next(rows, limit) if paged else None)

    @handles("function.logs.stream")
    async def stream(self, req: Req[Empty, StreamQuery]) -> AsyncIterator[Batch]:
        function_id = await known_function(self._store, req.scope, req.params["name"])
        query = req.query
        request_id = None if query.request_id is None else call_id(query.request_id)
        last = req.http.headers.get("last-event-id")
        position = None if last is None else Position.parse(last)
        return self._feed.follow(function_id, position, since=query.since, q=query.q, request_id=request_id)

    @handles("invocation.list")
    async def invocations(self, req: Req[Empty, InvocationQuery]) -> Page[Invocation]:
        query = req.query
        wanted = CallFilter(**{name: getattr(query, name) for name in CallFilter.__dataclass_fields__})
        before = _before(query.cursor)
        await self._settle()
        rows = await self._store.of_scope(req.scope, wanted, limit=query.limit + 1, before=before)
        shown = [row for row in rows[: query.limit] if _may_read(req.identity, row)]
        return Page[Invocation](
            items=[Invocation(**_common(row)) for row in shown], next_cursor=_next(rows, query.limit)
        )

    @handles("invocation.get")
    async def invocation(self, req: Req[Empty, Empty]) -> CallDetail:
        row = await self._call(req)
        kept: list[Literal["input", "output"]] = []
        payloads: dict[str, Any] = {}
        open_to_caller = access.allowed(req.identity, "payload:read", row["function_name"])
        for which in ("input", "output"):
            if row[which] is not None:
                kept.append("input" if which == "input" else "output")
                payloads[which] = _shown(row[which]) if open_to_caller else None
        return CallDetail(stdout=row["stdout"], stderr=row["stderr"], captured=kept, **payloads, **_common(row))

    @handles("invocation.logs")
    async def prints(self, req: Req[Empty, Empty]) -> Prints:
        row = await self._call(req)
        return Prints(
            id=str(row["id"]),
            created_at=row["created_at"],
            function=row["function_name"],
            version=row["version"],
            status=row["status"],
            stdout=row["stdout"],
            stderr=row["stderr"],
        )

    async def _call(self, req: Req[Empty, Empty]) -> Row:
        request_id = call_id(req.params["id"])
        await self._settle()
        row = await self._store.get(req.scope, request_id)
        if row is None or not _may_read(req.identity, row):
            raise not_found("call", req.params["id"])
        return row

    async def _require_call_of(self, function_id: UUID, request_id: UUID) -> None:
        """A call of another function is as unknown here as one that never was."""
        if not await self._store.of_function(function_id, LogFilter(request_id=request_id), limit=1):
            raise not_found("call", str(request_id))


async def known_function(store: InvocationStore, scope: Scope, name: str) -> UUID:
    """The function's id; raises ``not_found``."""
    found = await store.function_id(scope, name) if is_name(name) else None
    if found is None:
        raise not_found("function", name)
    return found


def call_id(text: str) -> UUID:
    """A request id; what does not look like one names no call."""
    try:
        return UUID(text)
    except ValueError:
        raise not_found("call", text) from None


def _may_read(identity: Identity, row: Row) -> bool:
    return access.allowed(identity, "log:read", row["function_name"])


def _common(row: Row) -> dict[str, Any]:
    error = None
    if row["error_kind"] is not None:
        error = CallError(type=row["error_kind"], message=row["error_message"], stack=row["error_stack"] or [])
    return {
        **{name: row[name] for name in _SAME},
        "id": str(row["id"]),
        "function_id": str(row["function_id"]),
        "function": row["function_name"],
        "outcome": row["outcome"] or outcome_of(_failure(row)),
        "handler_ms": max(0.0, round(row["duration_ms"] - row["queue_ms"] - row["boot_ms"] - row["init_ms"], 3)),
        "error": error,
    }


def _failure(row: Row) -> FunctionError | None:
    return None if row["error_kind"] is None else FunctionError(row["error_kind"], row["error_message"])


def _shown(text: str) -> Any:
    try:
        value = payload.decode(text)
    except ValueError:
        return None
    return value if _within(value, MAX_SHOWN_DEPTH) else None


def _within(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    children = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_within(child, depth - 1) for child in children)


def _next(rows: list[Row], limit: int) -> str | None:
    if len(rows) <= limit:
        return None
    last = rows[limit - 1]
    return paging.encode([(last["created_at"] - _EPOCH) // timedelta(microseconds=1), str(last["id"])])


def _before(cursor: str | None) -> Before | None:
    values = paging.decode(cursor, int, str)
    if values is None:
        return None
    try:
        return Before(_EPOCH + timedelta(microseconds=int(values[0])), UUID(str(values[1])))
    except (ValueError, OverflowError):
        raise NovaError("invalid_cursor", "take the cursor from next_cursor of the page before") from None
