"""Spans that are kept, and the tree that is made of them."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from nova.api.series import ROUTES
from nova.config import Settings, TracingSettings
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.ids import new_id
from nova.observability import spans as module
from nova.observability.series import SeriesHandlers
from nova.observability.spans import SpanWriter
from nova.observability.traces import TraceHandlers
from nova.store.db import Database
from nova.store.series import SeriesStore
from nova.store.spans import SpanRow, SpanStore
from nova.tracing import EndedSpan, Span, open_tracing
from tests.http.harness import Api, management
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio
TRACE = "0af7651916cd43dd8448eb211c80319c"
AT = datetime(2026, 11, 22, 5, tzinfo=UTC)


def _row(span_id: str, parent: str | None, name: str, *, at_ms: float = 0, ms: float = 1, **changes: Any) -> SpanRow:
    values: dict[str, Any] = {
        "trace_id": TRACE,
        "request_id": None,
        "function_name": "hello",
        "plane": "comet",
        "node": "here",
        "error": None,
        "attributes": {},
        **changes,
    }
    started = AT + timedelta(milliseconds=at_ms)
    return SpanRow(
        span_id=span_id, parent_id=parent, name=name, started_at=started, duration_us=int(ms * 1000), **values
    )


async def _get(api: Api, id: str, status: int = 200, **options: Any) -> Any:
    answer = await api.client.get(f"/traces/{id}", **options)
    assert answer.status_code == status, answer.text
    return answer.json()


def _serving(database: Database, writer: SpanWriter | None = None) -> Any:
    store = SpanStore(database)
    traces = TraceHandlers(store, (writer or SpanWriter(store)).settle)
    series = SeriesHandlers(SeriesStore(database), Settings().retention, MockClock())
    return management(database, [traces, series], ROUTES)


async def test_a_trace_is_a_tree_by_its_id_and_by_its_request(database: Database) -> None:
    request = UUID(new_id())
    rows = [
        _row("a", "client", "gateway.request", ms=10, plane="zenith", request_id=request),
        _row("b", "a", "nova.invoke", at_ms=1, ms=8, request_id=request, attributes={"nova.attempt": 1}),
        _row("d", "b", "nova.exec", at_ms=3, ms=5, error="ValueError"),
        _row("c", "b", "nova.acquire", at_ms=1, ms=2),
        _row("e", "d", "nova.invoke", at_ms=4, ms=20, function_name="second"),
    ]
    await SpanStore(database).add([(Scope(), row) for row in reversed(rows)])
    async with _serving(database) as api:
        trace = await _get(api, TRACE)
        assert await _get(api, str(request)) == trace
    assert (trace["trace_id"], trace["span_count"], trace["duration_ms"]) == (TRACE, 5, 24)
    (root,) = trace["spans"]
    assert (root["name"], root["plane"], root["parent_id"], root["remote_parent_id"]) == (
        "gateway.request", "zenith", None, "client",
    )  # fmt: skip
    (invoke,) = root["children"]
    assert (invoke["offset_ms"], invoke["duration_ms"], invoke["attributes"]) == (1, 8, {"nova.attempt": 1})
    assert [(span["name"], span["error"]) for span in invoke["children"]] == [
        ("nova.acquire", None),
        ("nova.exec", "ValueError"),
    ]
    assert invoke["children"][1]["children"][0]["function"] == "second"


async def test_who_may_not_read_a_function_s_logs_sees_none_of_its_spans(database: Database) -> None:
    await SpanStore(database).add(
        [(Scope(), _row("a", None, "nova.invoke")), (Scope(), _row("b", "a", "nova.invoke", function_name="secret"))]
    )
    async with _serving(database) as api:
        await api.tenant("acme")
        some = {"X-API-Key": await api.key("viewer", ["hello"])}
        assert (await _get(api, TRACE, headers=some))["span_count"] == 1
        hidden = {"X-API-Key": await api.key("viewer", ["other"])}
        await _get(api, TRACE, 404, headers=hidden)
        await _get(api, TRACE, 404, headers={"X-API-Key": await api.key("admin", tenant="acme")})
        for unknown in ("f" * 32, new_id(), "nothing", "x" * 300, TRACE.upper()):
            assert (await _get(api, unknown, 404))["code"] == "not_found"


async def test_spans_of_a_tracer_are_kept_with_their_tenant(database: Database) -> None:
    store = SpanStore(database)
    writer = SpanWriter(store)
    tracing = open_tracing(TracingSettings(enabled=True, exporter="stdout"), node="n1", sinks=(writer.add,))
    assert tracing is not None
    request_id = new_id()
    span: Span = tracing.tracer("comet").begin("nova.invoke", None)
    span.end(
        {
            "nova.tenant": "default", "nova.namespace": "default", "faas.name": "hello",
            "faas.invocation_id": request_id, "nova.attempt": 2,
        },
        error="timeout",
    )  # fmt: skip
    tracing.tracer("comet").begin("nova.invoke", None).end()  # nobody's
    await tracing.close()
    async with _serving(database, writer) as api:
        (kept,) = (await _get(api, request_id))["spans"]
    assert (kept["plane"], kept["node"], kept["function"], kept["error"]) == ("comet", "n1", "hello", "timeout")
    assert kept["attributes"] == {"nova.attempt": 2}
    assert (await database.one("SELECT count(*) AS n FROM trace_spans") or {})["n"] == 1


def _ended(span_id: str) -> EndedSpan:
    now = time.time_ns()
    scope = {"nova.tenant": "default", "nova.namespace": "default"}
    return EndedSpan(TRACE, span_id, None, "nova.invoke", "comet", "n", now, now, None, scope)


async def test_spans_wait_for_the_database_and_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 600)
    store = SpanStore(database)
    writer = SpanWriter(store)
    whole, away = store.add, True

    async def add(spans: Any) -> None:
        if away:
            raise NovaError("dependency_unavailable", "away")
        await whole(spans)

    monkeypatch.setattr(store, "add", add)
    for number in range(module.CAPACITY + 10):
        writer.add(_ended(f"{number:016x}"))
    await writer.settle()
    away = False
    await writer.settle()
    found = await database.one("SELECT count(*) AS n, min(span_id) AS first FROM trace_spans")
    assert found == {"n": module.CAPACITY, "first": f"{10:016x}"}


async def test_the_writer_writes_by_itself_and_at_its_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    writer = SpanWriter(SpanStore(database))
    await writer.start()
    writer.add(_ended("1" * 16))

    async def count() -> int:
        return int((await database.one("SELECT count(*) AS n FROM trace_spans") or {})["n"])

    async with asyncio.timeout(20):
        while await count() < 1:
            await asyncio.sleep(0.01)
    monkeypatch.setattr(module, "INTERVAL_S", 60)
    writer.add(_ended("2" * 16))
    await writer.close()
    assert await count() == 2
