"""One trace as a tree of its spans."""

import re
from collections.abc import Awaitable, Callable
from uuid import UUID

from nova.api.series import TRACE, Span, Trace
from nova.api.table import Empty
from nova.errors import not_found
from nova.http.handler import Req, handles
from nova.security import access
from nova.store.spans import SpanRow, SpanStore

MAX_SPANS = 1000
"""of one trace that are shown; a caller may put many calls into one"""
_ID = re.compile(TRACE)


class TraceHandlers:
    """``settle`` makes the spans of this process readable."""

    def __init__(self, store: SpanStore, settle: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._settle = settle

    @handles("trace.get")
    async def get(self, req: Req[Empty, Empty]) -> Trace:
        text = req.params["id"]
        if not _ID.fullmatch(text):
            raise not_found("trace", text)
        await self._settle()
        trace_id = text if "-" not in text else await self._store.trace_of(req.scope, UUID(text))
        found = await self._store.trace(req.scope, trace_id, limit=MAX_SPANS) if trace_id else []
        shown = [span for span in found if access.allowed(req.identity, "log:read", span.function_name)]
        if trace_id is None or not shown:
            raise not_found("trace", text)
        return tree(trace_id, shown)


def tree(trace_id: str, spans: list[SpanRow]) -> Trace:
    """``spans`` are one trace's, oldest first, and at least one."""
    begin = spans[0].started_at
    here = {span.span_id for span in spans}
    made: dict[str, Span] = {}
    roots: list[Span] = []
    for row in spans:
        inside = row.parent_id in here and row.parent_id != row.span_id
        made[row.span_id] = Span(
            span_id=row.span_id,
            parent_id=row.parent_id if inside else None,
            remote_parent_id=None if inside else row.parent_id,
            name=row.name,
            plane=row.plane,
            node=row.node,
            started_at=row.started_at,
            offset_ms=(row.started_at - begin).total_seconds() * 1000,
            duration_ms=row.duration_us / 1000,
            error=row.error,
            request_id=str(row.request_id) if row.request_id else None,
            function=row.function_name,
            attributes=row.attributes,
            children=[],
        )
    for span in made.values():
        (made[span.parent_id].children if span.parent_id else roots).append(span)
    ends = max(span.offset_ms + span.duration_ms for span in made.values())
    return Trace(trace_id=trace_id, started_at=begin, duration_ms=ends, span_count=len(made), spans=roots)
