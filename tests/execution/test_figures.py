"""Figures over HTTP: a function over a range, the pools now, the counters since start."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nova.domain.identity import Scope
from nova.store.db import Database
from tests.execution.finished import boom, deployed
from tests.execution.observed import Observed, observing, pool_row

pytestmark = pytest.mark.anyio


@pytest.fixture
async def seen(database: Database, tmp_path: Path) -> AsyncIterator[Observed]:
    async with observing(database, tmp_path) as observed:
        yield observed


async def _get(seen: Observed, path: str, status: int = 200, **options: Any) -> Any:
    answer = await seen.api.client.get(path, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_range_is_computed_over_its_calls_and_by_version(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    second = replace(hello, version=2)
    for milliseconds in range(1, 101):
        seen.call(hello, duration_us=milliseconds * 1000)
    seen.call(second, duration_us=500_000, cold_start=True, error=boom())
    await seen.logs.settle()
    await database.run(
        "UPDATE invocation_logs SET created_at = created_at - interval '2 hours' WHERE duration_ms <= 10"
    )

    hour = await _get(seen, "/functions/hello/metrics")
    assert (hour["range"], hour["calls"], hour["success"], hour["failed"]) == ("1h", 91, 90, 1)
    assert (hour["cold"], hour["warm"]) == (1, 90)
    assert (hour["min_ms"], hour["max_ms"]) == (11, 500)
    assert (hour["p50_ms"], hour["p95_ms"]) == (56, 96.5)
    assert [(v["version"], v["calls"], v["failed"]) for v in hour["versions"]] == [(1, 90, 0), (2, 1, 1)]
    assert hour["since_start"]["total_invocations"] == 101

    day = await _get(seen, "/functions/hello/metrics?range=1d")
    assert (day["calls"], day["min_ms"]) == (101, 1)


async def test_a_function_without_calls_has_no_latency(seen: Observed, database: Database) -> None:
    await deployed(database)
    figures = await _get(seen, "/functions/hello/metrics?range=5m")
    assert (figures["calls"], figures["avg_ms"], figures["p99_ms"], figures["versions"]) == (0, None, None, [])
    assert figures["since_start"]["total_invocations"] == 0


@pytest.mark.parametrize("text", ["", "1", "h", "0h", "1s", "-1h", "1h1m", "401d", "999999d"])
async def test_a_range_that_is_none_is_refused(seen: Observed, database: Database, text: str) -> None:
    await deployed(database)
    assert (await _get(seen, "/functions/hello/metrics", 400, params={"range": text}))["code"] == "validation_failed"


async def test_stats_add_up(seen: Observed) -> None:
    seen.pools += [
        pool_row("a", instances=5, ready=2, busy=1, booting=1, stopping=1, inflight=1, waiting=3),
        pool_row("b", instances=2, busy=2, inflight=6),
    ]
    stats = await _get(seen, "/stats")
    assert (stats["total_pools"], stats["active_vms"], stats["inflight"], stats["queue_depth"]) == (2, 7, 7, 3)
    states = ("idle", "busy", "booting", "draining", "stopping")
    assert sum(stats[name] for name in states) == stats["instances"]
    assert [pool["function"] for pool in stats["pools"]] == ["a", "b"]


async def test_a_tenant_s_key_sees_its_own_numbers_only(seen: Observed, database: Database) -> None:
    """OB1: names and numbers of one tenant are not in another's answers."""
    await seen.api.tenant("acme")
    seen.pools += [pool_row("theirs", "acme", instances=1, ready=1), pool_row("ours", instances=2, ready=2)]
    seen.call(await deployed(database, "theirs", tenant="acme", scope=Scope("acme")))
    seen.call(await deployed(database, "ours"))
    key = {"X-API-Key": await seen.api.key("viewer", tenant="acme")}
    assert [pool["function"] for pool in (await _get(seen, "/stats", headers=key))["pools"]] == ["theirs"]
    metrics = await _get(seen, "/metrics", headers=key)
    assert (metrics["total_invocations"], list(metrics["functions"])) == (1, ["theirs"])
    text = (await seen.api.client.get("/metrics/prometheus", headers=key)).text
    assert 'function="theirs"' in text
    assert "ours" not in text
    assert (await _get(seen, "/metrics"))["total_invocations"] == 2


async def test_metrics_speak_json_and_prometheus(seen: Observed, database: Database) -> None:
    """OB9: /metrics and /metrics/prometheus answer over HTTP."""
    seen.call(await deployed(database))
    body = await _get(seen, "/metrics")
    assert {
        "total_invocations", "success_invocations", "failed_invocations", "cold_starts", "warm_starts",
        "total_latency_ms", "min_latency_ms", "max_latency_ms", "vms_created", "vms_stopped", "vms_crashed",
        "snapshots_hit", "uptime_s", "functions",
    } == set(body)  # fmt: skip
    assert body["functions"]["hello"]["total_invocations"] == 1
    for path, accept in (
        ("/metrics", "text/plain"),
        ("/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
        ("/metrics/prometheus", "*/*"),
    ):
        answer = await seen.api.client.get(path, headers={"Accept": accept})
        assert answer.status_code == 200
        assert 'nova_warm_starts_total{function="hello"' in answer.text
    assert answer.headers["content-type"].startswith("text/plain")


async def test_numbers_are_not_for_everybody(seen: Observed) -> None:
    for path in ("/metrics", "/metrics/prometheus", "/stats", "/functions/hello/metrics"):
        assert (await seen.api.remote.get(path)).status_code == 401
