"""What a running platform tells about the calls it has served."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nova.execution.exposition import SERIES
from tests.e2e.server import RunningNova

CODE = """
import sys
def handler(event, context=None):
    print("working on", event.get("n"))
    if event.get("fail"):
        raise ValueError("as asked")
    return {"card": event.get("card")}
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunningNova]:
    with RunningNova(tmp_path / "data") as server:
        yield server


def _client(server: RunningNova) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60, trust_env=False)


def _deploy(http: httpx.Client, name: str, **more: object) -> None:
    answer = http.post("/functions", json={"name": name, "runtime": "python", "code": CODE, **more})
    assert answer.status_code == 201, answer.text


def test_the_last_calls_before_a_shutdown_have_their_records_after_it(running: RunningNova) -> None:
    """EX6: a shutdown flushes; each of 150 calls has exactly one record after a restart."""
    with _client(running) as http:
        _deploy(http, "hello")
        ids = [http.post("/functions/hello/invoke", json={"n": n}).headers["x-request-id"] for n in range(150)]
    assert running.stop() == 0
    with RunningNova(running.data_dir) as again, _client(again) as http:
        page = http.get("/invocations", params={"limit": 500}).json()
    assert [item["id"] for item in page["items"]] == list(reversed(ids))
    assert {item["status"] for item in page["items"]} == {"success"}


def test_every_entry_of_a_call_agrees(running: RunningNova) -> None:
    """OB9: logs, records, metrics and the live tail tell the same story about the same calls."""
    with _client(running) as http:
        _deploy(http, "hello", capture={"redact": ["/card"]})
        good = http.post("/functions/hello/invoke", json={"n": 1, "card": "4111-1111"})
        bad = http.post("/functions/hello/invoke", json={"n": 2, "fail": True})
        url = http.get("/fn/hello/some/path")
        assert (good.status_code, bad.status_code, url.status_code) == (200, 200, 200)

        logs = http.get("/functions/hello/logs").json()["items"]
        assert [(log["trigger"], log["status"], log["stdout"]) for log in logs] == [
            ("url", "success", "working on None\n"),
            ("http", "error", "working on 2\n"),
            ("http", "success", "working on 1\n"),
        ]
        assert logs[1]["error"]["type"] == "ValueError"
        kept = http.get(f"/invocations/{good.headers['x-request-id']}").json()
        assert (kept["input"], kept["output"]) == ({"n": 1, "card": "***"}, {"card": "***"})

        figures = http.get("/functions/hello/metrics").json()
        assert (figures["calls"], figures["failed"], figures["cold"]) == (3, 1, 1)
        totals = http.get("/metrics").json()
        assert totals["functions"]["hello"]["total_invocations"] == totals["total_invocations"] == 3
        assert totals["vms_created"] >= 1
        assert _tailed(http) == ["working on 1", "working on 2", "working on None"]


def test_the_declared_series_move_on_a_running_platform(running: RunningNova) -> None:
    """OB1: what a platform does in its first minute reaches the series that count it."""
    with _client(running) as http:
        _deploy(http, "hello")
        for n in range(3):
            http.post("/functions/hello/invoke", json={"n": n, "fail": n == 2})
        accepted = http.post("/functions/hello/invoke-async", json={"payload": {"n": 9}})
        http.get(accepted.headers["location"], params={"wait_s": 20})
        http.post("/workflows", json={"name": "counted"}).raise_for_status()
        nothing = {"nodes": [{"node_key": "n", "node_type": "pass"}]}
        http.post("/workflows/counted/versions", json=nothing).raise_for_status()
        http.post("/workflows/counted/runs", params={"wait_s": 20}, json={}).raise_for_status()
        durable = {"name": "kept", "runtime": "python", "mode": "durable", "code": "def handler():\n    return 1\n"}
        http.post("/functions", json=durable).raise_for_status()
        http.post("/functions/kept/invoke").raise_for_status()
        http.get("/stats", headers={"X-API-Key": "nk_nobody_knows"})
        text = http.get("/metrics/prometheus").text
    sampled = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    quiet = {
        "shed_total",
        "instances_stopped_total",
        "snapshots_hit_total",
        "snapshot_restore_milliseconds",
        "instances_crashed_total",
        "builds_total",
        "build_milliseconds",
        "rate_limited_total",
        "retention_rows_deleted_total",
        "destination_deliveries_total",
        "event_deliveries_total",
        "event_lag_milliseconds",
        "schedule_runs_total",
        "trigger_events_total",
        "schedule_lateness_milliseconds",
    }
    for name, series in SERIES.items():
        if name not in quiet:
            assert f"nova_{name}" + ("_count" if series.kind == "histogram" else "") in sampled


def _tailed(http: httpx.Client) -> list[str]:
    """The printed lines of the stream, until three calls have ended."""
    lines, ended = [], 0
    with http.stream("GET", "/functions/hello/logs/stream", params={"since": "2020-01-01T00:00:00Z"}) as answer:
        for line in answer.iter_lines():
            if line == "event: call":
                ended += 1
            if line.startswith("data: ") and "text" in (data := json.loads(line.removeprefix("data: "))):
                lines.append(data["text"])
            if ended == 3:
                break
    return lines
