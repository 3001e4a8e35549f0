"""Keeps sampled spans where they can be asked for: a sink of the tracer, written in batches."""

import asyncio
from collections import deque
from datetime import UTC, datetime
from uuid import UUID

import structlog

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.service import Background
from nova.store.spans import SpanRow, SpanStore
from nova.tracing import EndedSpan

log = structlog.get_logger(__name__)
INTERVAL_S = 1.0
BATCH = 500
CAPACITY = 10_000
"""Spans in memory; beyond it the oldest go. Traces are a sample: a call is never held up for them."""
_CLOSE_S = 2.0


class SpanWriter:
    """:meth:`add` is a sink for :func:`nova.tracing.open_tracing`. Spans that name no tenant are not kept."""

    def __init__(self, store: SpanStore) -> None:
        self._store = store
        self._waiting: deque[tuple[Scope, SpanRow]] = deque(maxlen=CAPACITY)
        self._turn = asyncio.Lock()
        self._tasks = Background("spans")

    async def start(self) -> None:
        self._tasks.spawn("write", self._run())

    async def close(self) -> None:
        """Write what is left, if the database takes it at once."""
        await self._tasks.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.settle()
        except TimeoutError:
            log.warning("spans were not written", spans=len(self._waiting))

    def add(self, span: EndedSpan) -> None:
        """Never blocks, never raises."""
        row = _row(span)
        if row is not None:
            self._waiting.append(row)

    async def settle(self) -> None:
        """Make the spans that have ended readable; returns without them while the database does not answer."""
        async with self._turn:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    await self._store.add(batch)
                except NovaError as error:
                    self._waiting.extendleft(reversed(batch))
                    log.warning("spans wait for the database", error=error.detail)
                    return

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.settle()


def _row(span: EndedSpan) -> tuple[Scope, SpanRow] | None:
    attributes = dict(span.attributes)
    tenant, namespace = attributes.pop("nova.tenant", None), attributes.pop("nova.namespace", None)
    if not isinstance(tenant, str) or not isinstance(namespace, str):
        return None
    request_id, function = attributes.pop("faas.invocation_id", None), attributes.pop("faas.name", None)
    row = SpanRow(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=span.parent_id,
        request_id=UUID(request_id) if request_id else None,
        function_name=function,
        name=span.name,
        plane=span.plane,
        node=span.node,
        started_at=datetime.fromtimestamp(span.began_ns / 1e9, UTC),
        duration_us=max(0, span.ended_ns - span.began_ns) // 1000,
        error=span.error,
        attributes=attributes,
    )
    return Scope(tenant, namespace), row
