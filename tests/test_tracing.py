"""The tracer itself: contexts in and out, sampling, exporters, and a collector that is not there."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from nova.config import TracingSettings
from nova.tracing import EndedSpan, Tracing, is_traceparent, open_tracing, trace_id
from tests.collector import grpc_collector, http_collector

pytestmark = pytest.mark.anyio
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = SAMPLED[:-2] + "00"


def _open(*sinks: Any, **settings: Any) -> Tracing:
    tracing = open_tracing(TracingSettings(enabled=True, **settings), node="here", sinks=sinks)
    assert tracing is not None
    return tracing


def test_nothing_is_loaded_while_it_is_off() -> None:
    code = (
        "import sys; from nova.tracing import open_tracing; from nova.config import TracingSettings\n"
        "assert open_tracing(TracingSettings(), node='n') is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (SAMPLED, True),
        ("01" + SAMPLED[2:] + "-more", True),
        ("ff" + SAMPLED[2:], False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", False),
        (SAMPLED.upper(), False),
        (SAMPLED[:-1], False),
        ("", False),
    ],
)
def test_what_is_a_traceparent(text: str, good: bool) -> None:
    assert is_traceparent(text) is good
    assert trace_id(SAMPLED) == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
async def test_spans_reach_a_collector(exporter: str) -> None:
    """OB3: every configured exporter exports."""
    with grpc_collector() if exporter == "otlp" else http_collector() as collector:
        tracing = _open(exporter=exporter, endpoint=collector.address, service_name="shop")
        tracer = tracing.tracer("zenith")
        outer = tracer.begin("gateway.request", SAMPLED, "vendor=1")
        promised = outer.reserve()
        now = time.time_ns()
        tracer.record("nova.exec", outer, now - 5_000_000, now, {"faas.name": "f"}, error="Boom", reserved=promised)
        outer.end({"nova.tenant": "default"})
        await tracing.close()
        request, run = collector.named("gateway.request"), collector.named("nova.exec")
    assert (request.trace_id, request.parent_id) == (SAMPLED[3:35], SAMPLED[36:52])
    assert (request.service, request.plane, request.failed) == ("shop", "nova.zenith", False)
    assert (run.trace_id, run.parent_id, run.span_id) == (request.trace_id, request.span_id, promised[36:52])
    assert (run.ended_ns - run.began_ns, run.failed, run.attributes) == (5_000_000, True, {"faas.name": "f"})
    assert is_traceparent(outer.traceparent)
    assert outer.traceparent[36:52] == request.span_id


async def test_stdout_gets_one_json_object_per_span(capsys: pytest.CaptureFixture[str]) -> None:
    tracing = _open(exporter="stdout")
    tracing.tracer("comet").begin("nova.invoke", None).end()
    await tracing.close()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["name"] == "nova.invoke"


async def test_the_caller_decides_whether_its_trace_is_sampled() -> None:
    seen: list[EndedSpan] = []
    for rate, parent, expected in ((0.0, SAMPLED, 1), (1.0, UNSAMPLED, 0), (1.0, None, 1), (0.0, None, 0)):
        seen.clear()
        tracing = _open(seen.append, exporter="stdout", sample_rate=rate)
        tracer = tracing.tracer("comet")
        outer = tracer.begin("gateway.request", parent)
        inner = tracer.begin("nova.invoke", outer.traceparent)
        assert outer.sampled is inner.sampled is bool(expected)
        assert [int(span.traceparent[-2:], 16) & 1 for span in (outer, inner)] == [expected] * 2
        assert outer.traceparent[3:35] == inner.traceparent[3:35]
        inner.end({"a": 1})
        outer.end()
        await tracing.close()
        assert len(seen) == 2 * expected, (rate, parent)


async def test_sinks_get_what_is_exported() -> None:
    seen: list[EndedSpan] = []
    tracing = _open(seen.append, exporter="stdout")
    tracing.tracer("comet").begin("nova.invoke", SAMPLED).end({"x": 1}, error="timeout", ended_ns=time.time_ns())
    tracing.tracer("comet").begin("nova.invoke", "no context at all").end()
    await tracing.close()
    first, second = seen
    assert (first.plane, first.node, first.error, first.attributes) == ("comet", "here", "timeout", {"x": 1})
    assert (first.trace_id, first.parent_id) == (SAMPLED[3:35], SAMPLED[36:52])
    assert second.parent_id is None
    assert second.trace_id != first.trace_id


async def test_a_collector_that_is_away_holds_nothing_up() -> None:
    """Spans are lost, calls and the shutdown go on."""
    tracing = _open(endpoint="127.0.0.1:9")
    began = time.monotonic()
    tracing.tracer("comet").begin("nova.invoke", None).end()
    await tracing.close()
    assert time.monotonic() - began < 5
