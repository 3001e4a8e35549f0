"""One trace from the client's header through the gateway and the executor into the function, as a collector sees it."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.config import TracingSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.ports import Invoker
from nova.domain.stream import Piece
from nova.errors import NovaError
from nova.execution.tracing import TracedInvoker
from nova.gateway.tracing import TracedGateway
from nova.tracing import EndedSpan, Sink, Tracing, open_tracing
from tests.collector import Collector, Got, grpc_collector
from tests.execution.fakes import make_call
from tests.execution.sinks import Reader
from tests.execution.stack import RealStack, real_stack

pytestmark = pytest.mark.anyio
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TELLS = (
    "import os\n"
    "def handler(event, context):\n"
    "    return {'context': context.traceparent, 'env': os.environ.get('TRACEPARENT'), 'state': context.tracestate}\n"
)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with grpc_collector() as found:
        yield found


@asynccontextmanager
async def traced(stack: RealStack, endpoint: str, *sinks: Sink) -> AsyncIterator[tuple[Invoker, Tracing]]:
    """The executor as the application puts it together when tracing is on; closing exports what is left."""
    tracing = open_tracing(TracingSettings(enabled=True, endpoint=endpoint), node="here", sinks=sinks)
    assert tracing is not None
    around = TracedInvoker(tracing.tracer("comet"), lambda *_version: "sandbox")
    stack.executor.record = around.recorder(stack.executor.record)
    try:
        yield TracedGateway(tracing.tracer("zenith"), around.around(stack.executor)), tracing
    finally:
        await tracing.close()


def _tree(spans: list[Got]) -> dict[str, str]:
    """Each span's name and its parent's."""
    names = {span.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent_id, span.parent_id) for span in spans}


async def test_a_call_is_one_trace_down_into_the_function(pg_dsn: str, tmp_path: Path, collector: Collector) -> None:
    """OB3: one trace runs from the client's header through the gateway into the guest's environment, a span per hop."""
    async with real_stack(pg_dsn, tmp_path) as stack:
        await stack.deploy(TELLS)
        async with traced(stack, collector.address) as (invoker, _):
            calls = [
                make_call(received=SYSTEM_CLOCK.monotonic(), traceparent=CLIENT, tracestate="vendor=1")
                for _ in range(2)
            ]
            cold, warm = [await invoker.invoke(call) for call in calls]
        assert len({record[0].traceparent[3:35] for record in stack.records if record[0].traceparent}) == 1
    spans = {
        call.request_id: [s for s in collector.spans if s.attributes["faas.invocation_id"] == call.request_id]
        for call in calls
    }
    first, second = spans.values()
    below = {"gateway.request": CLIENT[36:52], "nova.invoke": "gateway.request"}
    phases = dict.fromkeys(("nova.acquire", "nova.exec"), "nova.invoke")
    assert _tree(first) == {**below, **phases, "nova.boot": "nova.invoke"}
    assert _tree(second) == {**below, **phases}
    assert {span.trace_id for span in collector.spans} == {CLIENT[3:35]}

    for result, found in ((cold, first), (warm, second)):
        told = json.loads(result.output or b"")
        run = next(span for span in found if span.name == "nova.exec")
        assert told["context"] == told["env"]
        assert told["context"][3:52] == f"{run.trace_id}-{run.span_id}"
        assert told["state"] == "vendor=1"

    by_name = {span.name: span for span in first}
    attributes = by_name["nova.invoke"].attributes
    assert attributes == {
        "nova.tenant": "default",
        "nova.namespace": "default",
        "faas.name": "hello",
        "faas.invocation_id": calls[0].request_id,
        "faas.version": "1",
        "faas.coldstart": True,
        "faas.trigger": "http",
        "nova.runtime": attributes["nova.runtime"],
        "nova.backend": "sandbox",
        "nova.instance.id": cold.instance_id,
        "nova.start_source": cold.source,
        "nova.queue_ms": cold.phases.queue_us / 1000,
        "nova.attempt": 1,
        "nova.outcome": "success",
    }
    outer = by_name["nova.invoke"]
    order = [by_name[name] for name in ("nova.acquire", "nova.boot", "nova.exec")]
    assert [span.began_ns for span in order] == sorted(span.began_ns for span in order)
    assert all(outer.began_ns <= span.began_ns <= span.ended_ns <= outer.ended_ns for span in order)
    assert by_name["gateway.request"].began_ns <= outer.began_ns
    assert (by_name["gateway.request"].plane, outer.plane) == ("nova.zenith", "nova.comet")


async def test_failures_say_what_they_were(pg_dsn: str, tmp_path: Path, collector: Collector) -> None:
    async with real_stack(pg_dsn, tmp_path) as stack:
        await stack.deploy(
            "import time\ndef handler(event, context):\n    time.sleep(event.get('s', 0))\n    raise KeyError(1)\n"
        )
        async with traced(stack, collector.address) as (invoker, _):
            raised = make_call(received=SYSTEM_CLOCK.monotonic())
            assert (await invoker.invoke(raised)).error is not None
            slow = make_call(payload=b'{"s": 5}', received=SYSTEM_CLOCK.monotonic(), timeout_ms=300)
            with pytest.raises(NovaError, match="timeout"):
                await invoker.invoke(slow)
            with pytest.raises(NovaError, match="not_found"):
                await invoker.invoke(make_call("nobody", received=SYSTEM_CLOCK.monotonic()))

    def of(request_id: str, name: str) -> Got:
        return next(s for s in collector.spans if s.name == name and s.attributes["faas.invocation_id"] == request_id)

    assert of(raised.request_id, "nova.invoke").attributes["nova.outcome"] == "KeyError"
    assert of(raised.request_id, "nova.exec").failed
    assert not of(
        raised.request_id, "gateway.request"
    ).failed  # answered with 200: the function failed, not the platform
    assert of(slow.request_id, "nova.invoke").attributes["nova.outcome"] == "timeout"
    assert of(slow.request_id, "nova.exec").failed
    assert of(slow.request_id, "gateway.request").attributes["http.response.status_code"] == 504
    (unknown,) = (s for s in collector.spans if s.attributes["faas.name"] == "nobody" and s.name == "nova.invoke")
    assert unknown.attributes["nova.outcome"] == "not_found"
    assert raised.traceparent is not None  # a trace that begins here is named in the record too


async def test_what_the_caller_does_not_sample_leaves_no_span_but_goes_on(
    pg_dsn: str, tmp_path: Path, collector: Collector
) -> None:
    async with real_stack(pg_dsn, tmp_path) as stack:
        await stack.deploy(TELLS)
        async with traced(stack, collector.address) as (invoker, _):
            call = make_call(received=SYSTEM_CLOCK.monotonic(), traceparent=CLIENT[:-2] + "00")
            result = await invoker.invoke(call)
    assert json.loads(result.output or b"")["context"] == CLIENT[:-2] + "00"
    assert collector.spans == []


async def test_the_span_of_a_stream_ends_with_it(collector: Collector) -> None:
    """What goes wrong after the first piece is the span's outcome, too."""
    ended: list[EndedSpan] = []
    tracing = open_tracing(
        TracingSettings(enabled=True, endpoint=collector.address), node="here", sinks=(ended.append,)
    )
    assert tracing is not None

    class Late:
        async def invoke(self, call: CallRequest) -> CallResult:
            raise AssertionError("it was to be streamed")

        async def stream(self, call: CallRequest, sink: Reader) -> CallResult:
            sink.piece(Piece("text", b'"first"'))
            assert ended == []
            raise NovaError("timeout", "silent")

    reader = Reader()
    invoker = TracedInvoker(tracing.tracer("comet"), lambda *_version: "sandbox").around(Late())
    with pytest.raises(NovaError, match="silent"):
        await invoker.stream(make_call(traceparent=CLIENT), reader)
    await tracing.close()
    assert reader.values == ["first"]
    assert [(span.name, span.error) for span in ended] == [("nova.invoke", "timeout")]
