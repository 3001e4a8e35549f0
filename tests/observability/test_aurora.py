"""aurora over HTTP: its own health, and the series of every process in one answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from nova.config import MetricsSettings
from nova.errors import NovaError
from nova.execution.exposition import Exposition
from nova.execution.logs import LogCounts
from nova.execution.metrics import Metrics
from nova.observability.aurora import AuroraApp
from nova.observability.scrape import Scraper, Source
from tests.execution.fakes import make_snapshot
from tests.execution.finished import boom, finished
from tests.http.harness import client_of

pytestmark = pytest.mark.anyio


def _exposition(calls: int) -> str:
    """What a comet with so many calls tells."""
    metrics = Metrics(MetricsSettings())
    for number in range(calls):
        call, result = finished(make_snapshot(), duration_us=7000, error=boom() if number == 0 else None)
        metrics.record(call, make_snapshot(), result)
    exposition = Exposition(metrics, LogCounts(), lambda: {"pools": []}, namespace="nova")
    return exposition.prometheus("text/plain", None)[0].decode()


def _source(node: str, text: str | BaseException, **labels: str) -> Source:
    async def read() -> str:
        if isinstance(text, BaseException):
            raise text
        return text

    return Source({"node": node, **labels}, read)


def _silent(node: str) -> Source:
    async def read() -> str:
        await asyncio.sleep(60)
        return ""

    return Source({"node": node}, read)


def _scraper(*sources: Source, timeout_s: float = 2.0) -> Scraper:
    async def found() -> Sequence[Source]:
        return sources

    return Scraper(found, namespace="nova", timeout_s=timeout_s)


def _samples(text: bytes, parse: Callable[[str], Any] = classic) -> dict[tuple[str, str], float]:
    """Values by sample name and node, of one function's or of none."""
    return {
        (sample.name, sample.labels.get("node", "")): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


async def test_every_process_s_series_with_the_name_of_its_node() -> None:
    """OB2: numbers over two comets add up."""
    text, content_type = await _scraper(_source("a", _exposition(3)), _source("b", _exposition(5))).scrape("")
    samples = _samples(text)
    assert content_type.startswith("text/plain")
    assert [samples["nova_warm_starts_total", node] for node in "ab"] == [3, 5]
    assert [samples["nova_invocation_duration_milliseconds_count", node] for node in "ab"] == [3, 5]
    assert [samples["nova_scrape_up", node] for node in "ab"] == [1, 1]
    lines = text.decode().splitlines()
    for kind in ("# HELP", "# TYPE"):
        names = [line.split()[2] for line in lines if line.startswith(kind)]
        assert len(names) == len(set(names))
    assert any(
        line.startswith("nova_invocation_duration_milliseconds_bucket{") and 'node="b"' in line for line in lines
    )


async def test_openmetrics_where_it_is_asked_for() -> None:
    accept = "application/openmetrics-text;version=1.0.0"
    text, content_type = await _scraper(_source("a", _exposition(2))).scrape(accept)
    assert content_type.startswith("application/openmetrics-text")
    assert _samples(text, openmetrics)["nova_warm_starts_total", "a"] == 2


async def test_who_does_not_answer_is_left_out_and_named() -> None:
    silent, broken = _silent("b"), _source("c", NovaError("dependency_unavailable", "gone"))
    garbage = _source("d", "<html>not an exposition {{{")
    began = asyncio.get_running_loop().time()
    text, _ = await _scraper(_source("a", _exposition(1)), silent, broken, garbage, timeout_s=0.1).scrape("")
    assert asyncio.get_running_loop().time() - began < 2
    samples = _samples(text)
    assert [samples["nova_scrape_up", node] for node in "abcd"] == [1, 0, 0, 0]
    assert samples["nova_warm_starts_total", "a"] == 1
    assert ("nova_warm_starts_total", "b") not in samples


async def test_one_name_has_one_type() -> None:
    one = _source("a", "# TYPE nova_x gauge\nnova_x 1\n")
    two = _source("b", "# TYPE nova_x counter\nnova_x_total 1\n", plane="zenith")
    text, _ = await _scraper(one, two).scrape("")
    assert text.decode().count("# TYPE nova_x ") == 1
    assert 'nova_scrape_up{node="b",plane="zenith"} 1.0' in text.decode()


async def test_nobody_is_there() -> None:
    text, _ = await _scraper().scrape("")
    assert "nova_scrape_up" in text.decode()


# The application


def _app(standing: Mapping[str, Any] | None = None, others: Any = None) -> AuroraApp:
    def admit(headers: Mapping[bytes, bytes], peer: str | None) -> None:
        if peer != "127.0.0.1" and headers.get(b"authorization") != b"Bearer good":
            raise NovaError("unauthenticated", "the service token, please")

    return AuroraApp(
        _scraper(_source("a", _exposition(1))),
        admit=admit,
        standing=lambda: standing or {"postgres": "ok", "rollup": "ok"},
        others=others,
    )


async def test_health_is_its_own_state() -> None:
    """OB9: /health and /metrics answer over HTTP on aurora."""
    async with client_of(_app()) as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "ok", "parts": {"postgres": "ok", "rollup": "ok"}},
        )
        assert answer.headers["x-request-id"]
    async with client_of(_app({"postgres": "ok", "rollup": "degraded"})) as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    async with client_of(_app({"postgres": "down"})) as client:
        assert (await client.get("/health")).status_code == 503


async def test_probes_tell_a_process_that_lives_from_one_that_serves() -> None:
    for standing, ready in (({"postgres": "ok"}, 200), ({"postgres": "degraded"}, 200), ({"postgres": "down"}, 503)):
        async with client_of(_app(standing)) as client:
            codes = [(await client.get(f"/health/{probe}")).status_code for probe in ("live", "ready", "startup")]
            assert codes == [200, ready, ready]


async def test_metrics_are_for_those_who_are_admitted() -> None:
    async with client_of(_app()) as client, client_of(_app(), "203.0.113.7") as stranger:
        answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert 'nova_scrape_up{node="a"} 1.0' in answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        refused = await stranger.get("/metrics")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        let_in = await stranger.get("/metrics", headers={"Authorization": "Bearer good"})
        assert let_in.status_code == 200
        assert (await stranger.get("/health")).status_code == 200
        assert (await client.head("/metrics")).content == b""


async def test_other_paths_and_methods() -> None:
    async def others(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with client_of(_app()) as client:
        for method, path, status in (("GET", "/nothing", 404), ("POST", "/metrics", 405), ("DELETE", "/health", 405)):
            answer: httpx.Response = await client.request(method, path)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
    async with client_of(_app(others=others)) as client:
        assert (await client.get("/anything")).status_code == 204
