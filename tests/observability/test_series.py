"""Time series and heatmaps over HTTP, from records that were rolled up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nova.api.series import ROUTES
from nova.config import Settings
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.observability.series import SeriesHandlers
from nova.observability.traces import TraceHandlers
from nova.store.db import Database
from nova.store.invocations import InvocationStore
from nova.store.series import SeriesStore
from nova.store.spans import SpanStore
from tests.execution.finished import boom, deployed
from tests.http.harness import Api, management
from tests.mock_clock import MockClock
from tests.observability.records import row, unfenced, write

pytestmark = pytest.mark.anyio


async def nothing_to_settle() -> None:
    return


@dataclass
class Charts:
    api: Api
    database: Database
    clock: MockClock
    settings: Settings

    async def calls(self, *rows: bytes) -> None:
        await write(InvocationStore(self.database), rows)
        while await SeriesStore(self.database).roll_up(unfenced, limit=1000):
            pass

    async def get(self, path: str, status: int = 200, **options: Any) -> Any:
        answer = await self.api.client.get(path, **options)
        assert answer.status_code == status, answer.text
        return answer.json()


@asynccontextmanager
async def charting(database: Database) -> AsyncIterator[Charts]:
    clock, settings = MockClock(), Settings()  # 2026-11-22 05:08, a Sunday
    owners = [
        SeriesHandlers(SeriesStore(database), settings.retention, clock),
        TraceHandlers(SpanStore(database), nothing_to_settle),
    ]
    async with management(database, owners, ROUTES, settings=settings) as api:
        yield Charts(api, database, clock, settings)


@pytest.fixture
async def charts(database: Database) -> AsyncIterator[Charts]:
    async with charting(database) as found:
        yield found


@pytest.fixture
async def hello(database: Database) -> FunctionSnapshot:
    return await deployed(database)


def _ago(charts: Charts, **span: float) -> datetime:
    return charts.clock.now() - timedelta(**span)


async def test_a_day_has_24_hours_and_empty_ones_are_there(charts: Charts, hello: FunctionSnapshot) -> None:
    now = charts.clock.now()
    await charts.calls(
        row(hello, now, 10),
        row(hello, _ago(charts, hours=2), 20, error=boom()),
        row(hello, _ago(charts, hours=2), 40, cold_start=True),
        row(hello, _ago(charts, hours=25), 1),
    )
    series = await charts.get("/metrics/timeseries")
    points = series["points"]
    assert (series["range"], series["step"], series["function"], len(points)) == ("24h", "1h", None, 24)
    assert points[-1]["ts"] == "2026-11-22T05:00:00Z"
    assert points[0]["ts"] == "2026-11-21T06:00:00Z"
    assert [point["invocations"] for point in points] == [0] * 21 + [2, 0, 1]
    busy, empty = points[21], points[22]
    assert (busy["errors"], busy["cold_starts"], busy["avg_duration_ms"]) == (1, 1, 30)
    assert busy["p95_duration_ms"] == pytest.approx(40, rel=0.05)
    assert (empty["errors"], empty["avg_duration_ms"], empty["p95_duration_ms"]) == (0, None, None)


async def test_percentiles_are_over_all_calls_of_a_bucket(charts: Charts, hello: FunctionSnapshot) -> None:
    """OB4: p95 covers the whole window, over minutes and versions."""
    rows = [row(hello, _ago(charts, minutes=number % 50), 1 + number) for number in range(500)]
    await charts.calls(*rows)
    day = (await charts.get("/metrics/timeseries?range=1d&step=1d&function=hello"))["points"]
    assert [point["invocations"] for point in day] == [500]
    assert day[0]["p95_duration_ms"] == pytest.approx(475, rel=0.05)
    assert day[0]["avg_duration_ms"] == pytest.approx(250.5)


async def test_steps_of_minutes_and_days(charts: Charts, hello: FunctionSnapshot) -> None:
    await charts.calls(*(row(hello, _ago(charts, minutes=number)) for number in range(30)))
    minutes = (await charts.get("/metrics/timeseries?range=30m&step=10m"))["points"]
    assert [(point["ts"][11:16], point["invocations"]) for point in minutes] == [
        ("04:40", 10),
        ("04:50", 10),
        ("05:00", 9),
    ]
    week = (await charts.get("/metrics/timeseries?range=7d&step=1d"))["points"]
    assert [point["invocations"] for point in week] == [0] * 6 + [30]
    assert week[-1]["ts"] == "2026-11-22T00:00:00Z"


async def test_one_function_or_all_of_the_namespace(charts: Charts, hello: FunctionSnapshot) -> None:
    other = await deployed(charts.database, "other")
    now = charts.clock.now()
    await charts.calls(row(hello, now), row(other, now), row(other, now))
    for query, expected in (("", 3), ("?function=hello", 1), ("?function=other", 2)):
        points = (await charts.get(f"/metrics/timeseries{query}"))["points"]
        assert points[-1]["invocations"] == expected
    assert (await charts.get("/metrics/timeseries?function=nobody", 404))["code"] == "not_found"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("range=0h", "range"),
        ("range=1y", "range"),
        ("step=1s", "step"),
        ("range=1h&step=2h", "step"),
        ("range=26h&step=1m", "step"),
        ("range=401d&step=1d", "range"),
        ("range=10d&step=30m", "range"),
        ("function=not%20a%20name", "function"),
    ],
)
async def test_ranges_that_cannot_be_answered_are_refused_by_name(charts: Charts, query: str, field: str) -> None:
    problem = await charts.get(f"/metrics/timeseries?{query}", 400)
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_1500_points_are_allowed(charts: Charts) -> None:
    assert len((await charts.get("/metrics/timeseries?range=25h&step=1m"))["points"]) == 1500


async def test_a_heatmap_counts_days_and_hours_of_the_caller_s_time_zone(
    charts: Charts, hello: FunctionSnapshot
) -> None:
    other = await deployed(charts.database, "other")
    late = datetime(2026, 11, 20, 23, 30, tzinfo=UTC)  # Saturday 00:30 in Berlin, Friday 18:30 in New York
    await charts.calls(row(hello, late), row(hello, late, error=boom()), row(other, late))
    for zone, day, hour in (
        ("UTC", "2026-11-20", 23),
        ("Europe/Berlin", "2026-11-21", 0),
        ("America/New_York", "2026-11-20", 18),
    ):
        heat = await charts.get("/metrics/heatmap", params={"timezone": zone, "weeks": 2})
        by_day = {found["date"]: found for found in heat["days"]}
        assert (len(heat["days"]), heat["timezone"]) == (14, zone)
        assert (by_day[day]["invocations"], by_day[day]["errors"], by_day[day]["hours"][hour]) == (3, 1, 3)
        assert sum(found["invocations"] for found in heat["days"]) == 3
    own = await charts.get("/functions/hello/heatmap")
    assert (own["function"], len(own["days"]), sum(found["invocations"] for found in own["days"])) == ("hello", 364, 2)
    await charts.get("/functions/nobody/heatmap", 404)


async def test_a_heatmap_says_how_far_back_its_numbers_reach(charts: Charts) -> None:
    heat = await charts.get("/metrics/heatmap?weeks=104")
    assert (len(heat["days"]), heat["days"][0]["date"]) == (728, "2024-11-25")
    assert heat["kept_from"] == "2025-10-18"  # 400 days ago
    assert (await charts.get("/metrics/heatmap?weeks=4"))["kept_from"] == "2026-10-26"


@pytest.mark.parametrize("query", ["weeks=0", "weeks=105", "timezone=Mars/Base", "timezone=", "timezone=../etc/passwd"])
async def test_bad_heatmaps_are_refused(charts: Charts, query: str) -> None:
    problem = await charts.get(f"/metrics/heatmap?{query}", 400)
    assert [error["field"] for error in problem["errors"]] == [query.partition("=")[0]]


async def test_keys_see_their_tenant_and_their_functions(charts: Charts, hello: FunctionSnapshot) -> None:
    """OB1: numbers of one tenant are not in another's answers."""
    await charts.api.tenant("acme")
    theirs = await deployed(charts.database, "hello", tenant="acme", scope=Scope("acme"))
    now = charts.clock.now()
    await charts.calls(row(hello, now), row(theirs, now), row(theirs, now))
    acme = {"X-API-Key": await charts.api.key("viewer", tenant="acme")}
    assert (await charts.get("/metrics/timeseries", headers=acme))["points"][-1]["invocations"] == 2
    assert (await charts.get("/metrics/timeseries?function=hello", headers=acme))["points"][-1]["invocations"] == 2
    some = {"X-API-Key": await charts.api.key("viewer", ["hello"])}
    assert (await charts.get("/metrics/timeseries?function=hello", headers=some))["points"][-1]["invocations"] == 1
    for path in ("/metrics/timeseries", "/metrics/timeseries?function=secret", "/metrics/heatmap"):
        await charts.get(path, 403, headers=some)
    assert (await charts.api.remote.get("/metrics/timeseries")).status_code == 401
