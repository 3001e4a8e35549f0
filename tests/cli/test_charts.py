"""The pictures, of answers that a real application gave."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova import client as client_module
from nova.api import series as series_api
from nova.api.table import routes
from nova.cli import charts, session
from nova.cli.charts import by_weekday, local_timezone, shade, sparkline
from nova.domain.identity import Scope
from nova.store.db import Database
from nova.store.spans import SpanRow, SpanStore
from tests.execution.finished import boom, deployed
from tests.http.harness import serve
from tests.observability.records import row
from tests.observability.test_series import Charts, charting

pytestmark = pytest.mark.anyio
TRACE = "0af7651916cd43dd8448eb211c80319c"
Run = Callable[..., Any]


@asynccontextmanager
async def _orbit(charts_: Charts, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """``await run("series", "hello")``: the command's output, against the application on a real socket."""
    table = {route.op: route for route in (*routes(), *series_api.ROUTES)}
    monkeypatch.setattr(client_module, "operations", lambda: table)
    monkeypatch.setenv("TZ", "Europe/Berlin")
    app = typer.Typer()
    app.callback()(session.root)
    charts.register(app)
    async with serve(charts_.api.app) as port:

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", *arguments]
            result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, command))
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return result.stdout

        yield run


@pytest.fixture
async def found(database: Database) -> AsyncIterator[Charts]:
    async with charting(database) as charts_:
        hello = await deployed(database)
        now = charts_.clock.now()
        await charts_.calls(
            *(row(hello, now - timedelta(hours=3), 20) for _ in range(8)),
            row(hello, now, 200, error=boom(), cold_start=True),
        )
        yield charts_


async def test_series_are_a_sparkline_and_a_table(
    found: Charts, monkeypatch: pytest.MonkeyPatch, plain_environment: None
) -> None:
    async with _orbit(found, monkeypatch) as run:
        shown = await run("series", "hello", "--range", "6h")
        assert "hello, the last 6h in steps of 1h" in shown
        assert "calls   █  ▂ 8" in shown
        assert len([line for line in shown.splitlines() if line.startswith("2026-11-22")]) == 2
        points = json.loads(await run("series", "-o", "json"))["points"]
        assert [point["invocations"] for point in points][-4:] == [8, 0, 0, 1]


async def test_the_heatmap_is_a_week_in_the_caller_s_time_zone(
    found: Charts, monkeypatch: pytest.MonkeyPatch, plain_environment: None
) -> None:
    async with _orbit(found, monkeypatch) as run:
        shown = await run("heatmap", "hello", "--weeks", "2")
        assert "hours of Europe/Berlin" in shown
        sunday = next(line for line in shown.splitlines() if line.startswith("Sun"))
        assert sunday == "Sun " + "··" * 3 + "██" + "··" * 2 + "░░" + "··" * 17 + " " * 8 + "9"
        assert "busiest hour 8 calls" in shown
        assert json.loads(await run("heatmap", "--timezone", "UTC", "-o", "json"))["timezone"] == "UTC"


async def test_a_trace_is_a_tree_with_durations(
    found: Charts, monkeypatch: pytest.MonkeyPatch, plain_environment: None
) -> None:
    now = found.clock.now()
    rows = [
        SpanRow(TRACE, "a", None, None, "hello", "gateway.request", "zenith", "n1", now, 12_340, None, {}),
        SpanRow(
            TRACE, "b", "a", None, "hello", "nova.invoke", "comet", "n2", now, 11_000, None, {"faas.coldstart": True}
        ),
        SpanRow(TRACE, "c", "b", None, "hello", "nova.exec", "comet", "n2", now, 9_000, "KeyError", {}),
    ]
    await SpanStore(found.database).add([(Scope(), span) for span in rows])
    async with _orbit(found, monkeypatch) as run:
        lines = (await run("trace", TRACE)).splitlines()
        assert lines[0].startswith(f"trace {TRACE}  12.34 ms")
        assert lines[1].strip() == "└── gateway.request  12.34 ms  +0.00  zenith@n1  hello"
        assert lines[2].strip() == "└── nova.invoke  11.00 ms  +0.00  comet@n2  hello  cold"
        assert lines[3].strip() == "└── nova.exec  9.00 ms  +0.00  comet@n2  KeyError"
        assert json.loads(await run("trace", TRACE, "-o", "json"))["span_count"] == 3


def test_the_strokes() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 0]) == "  "
    assert sparkline([0, 1, 50, 100]) == " ▁▅█"
    assert [shade(count, 100) for count in (0, 1, 50, 100)] == ["·", "░", "▒", "█"]
    week = by_weekday([{"date": "2026-11-23", "hours": [2] + [0] * 23}, {"date": "2026-11-16", "hours": [1] * 24}])
    assert (week[0][:2], sum(map(sum, week))) == ([3, 1], 26)


def test_the_time_zone_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", ":Asia/Kolkata")
    assert local_timezone() == "Asia/Kolkata"
    monkeypatch.setenv("TZ", "no such place")
    assert isinstance(local_timezone(), str)
