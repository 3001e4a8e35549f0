"""The batched stream of calls: all of it arrives, nothing waits for anything else, each failure says what became of the call."""

import asyncio

import grpc
import pytest

from nova.clock import SYSTEM_CLOCK
from nova.domain.call import CallRequest, CallResult, Phases
from nova.domain.identity import Grant, Identity, Scope
from nova.errors import FieldError, FunctionError, NovaError
from nova.rpc import calls_server, failures
from nova.rpc import nova_pb2 as pb
from nova.rpc.failures import RemoteFailure
from nova.rpc.transport import ENVELOPE
from tests.gateway.fakes import FakeInvoker
from tests.rpc.planes import connected, make_call, metadata, raw, serving, until

pytestmark = pytest.mark.anyio


async def test_a_call_arrives_with_everything_that_matters() -> None:
    invoker = FakeInvoker()
    identity = Identity(
        "key:bob",
        frozenset({"acme"}),
        frozenset({"prod"}),
        (Grant(frozenset({"function:invoke"}), ("a*",)), Grant(frozenset({"log:read"}), effect="deny")),
        tier="pro",
        default_scope=Scope("acme", "prod"),
    )
    sent = make_call(
        b'{"n": 1}',
        "adder",
        scope=Scope("acme", "prod"),
        identity=identity,
        qualifier="canary",
        timeout_ms=60_000,
        trigger="schedule",
        sticky_key="käthe",
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        tracestate="vendor=1",
        client_request_id="order-7",
        source_address="203.0.113.4",
        idempotency_key="once",
        attempt=3,
        caller="schedule:nightly",
    )
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        await comet.invoke(sent)
    got = invoker.calls[0]
    assert got.timeout_ms is not None
    assert 50_000 < got.timeout_ms <= 60_000
    assert abs(got.received - SYSTEM_CLOCK.monotonic()) < 30
    for name in CallRequest.__slots__:
        if name not in ("timeout_ms", "received"):
            assert getattr(got, name) == getattr(sent, name), name


async def test_a_result_comes_back_with_everything_that_matters() -> None:
    class Answers:
        result: CallResult

        async def invoke(self, call: CallRequest) -> CallResult:
            return self.result

    answers = Answers()
    results = [
        CallResult(
            "r", 12, b'{"a":"\xc3\xa4"}', None, 5, True, "i-9", "boot", Phases(1, 2, 3, 4), "out\n", "err\n", True
        ),
        CallResult("r", 1, None, FunctionError("ValueError", "half \ud800", ("line 1", "line 2")), 5, False, "i-9"),
        CallResult("r", 1, b"", None, 0, False, ""),
    ]
    async with serving(invoker=answers) as server, connected(server.port) as comet:
        for result in results:
            answers.result = result
            got = await comet.invoke(make_call())
            if result.error is not None:
                assert got.error == FunctionError("ValueError", "half ?", ("line 1", "line 2"))
                got.error = result.error
            assert got == result


async def test_only_the_end_of_what_a_function_printed_travels() -> None:
    class Chatty(FakeInvoker):
        async def invoke(self, call: CallRequest) -> CallResult:
            result = await super().invoke(call)
            result.stdout = "x" * 100_000 + "the end"
            return result

    async with serving(invoker=Chatty()) as server, connected(server.port) as comet:
        got = await comet.invoke(make_call())
    assert len(got.stdout) == 4096
    assert got.stdout.endswith("the end")


async def test_a_refusal_keeps_its_details_and_says_whether_the_call_began() -> None:
    invoker = FakeInvoker()
    cases = [
        (NovaError("queue_full", "too many", retry_after_s=2.5), "no"),
        (NovaError("validation_failed", "bad", errors=[FieldError("a.b", "wrong")]), "no"),
        (NovaError("timeout", "late", extra={"version": 4}), "yes"),
        (NovaError("timeout", "never began"), "no"),
        (NovaError("instance_lost", "gone"), "yes"),
        (NovaError("dependency_unavailable", "no database"), "unknown"),
    ]
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        for error, delivered in cases:
            invoker.refusal = error
            with pytest.raises(RemoteFailure) as caught:
                await comet.invoke(make_call())
            got = caught.value
            assert (got.code, got.detail, got.errors, got.extra) == (
                error.code,
                error.detail,
                error.errors,
                error.extra,
            )
            assert got.retry_after_s == error.retry_after_s
            assert failures.delivered(got) == got.delivered == delivered


async def test_a_fault_in_the_server_tells_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def invoke(self, call: CallRequest) -> CallResult:
            raise ZeroDivisionError("secret detail")

    async with serving(invoker=Broken()) as server, connected(server.port) as comet:
        with pytest.raises(RemoteFailure) as caught:
            await comet.invoke(make_call())
        assert caught.value.code == "internal"
        assert "secret" not in str(caught.value)
        assert caught.value.delivered == "unknown"


async def test_a_slow_call_delays_no_other() -> None:
    invoker = FakeInvoker()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        invoker.hold = asyncio.Event()
        slow = asyncio.create_task(comet.invoke(make_call(b'"slow"')))
        await invoker.began.wait()
        hold, invoker.hold = invoker.hold, None
        answers = await asyncio.gather(*(comet.invoke(make_call(b"%d" % n)) for n in range(200)))
        assert [answer.output for answer in answers] == [b"%d" % n for n in range(200)]
        assert not slow.done()
        hold.set()
        assert (await slow).output == b'"slow"'


async def test_more_calls_than_the_window_wait_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_server, "WINDOW", 4)

    class Counting(FakeInvoker):
        now = peak = 0

        async def invoke(self, call: CallRequest) -> CallResult:
            self.now += 1
            self.peak = max(self.peak, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            return await super().invoke(call)

    invoker = Counting()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        answers = await asyncio.gather(*(comet.invoke(make_call(b"%d" % n)) for n in range(60)))
        assert [answer.output for answer in answers] == [b"%d" % n for n in range(60)]
        assert [call.payload for call in invoker.calls] == [b"%d" % n for n in range(60)]
        assert invoker.peak == 4
        assert comet.unanswered == 0


async def test_callers_that_leave_while_they_wait_for_the_window_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_server, "WINDOW", 1)
    invoker = FakeInvoker()
    invoker.hold = asyncio.Event()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        first = asyncio.create_task(comet.invoke(make_call()))
        await invoker.began.wait()
        waiting = [asyncio.create_task(comet.invoke(make_call())) for _ in range(5)]
        late = asyncio.create_task(comet.invoke(make_call(timeout_ms=50)))
        with pytest.raises(RemoteFailure) as caught:
            await late
        assert (caught.value.code, caught.value.delivered) == ("timeout", "no")
        for task in waiting[:4]:
            task.cancel()
        await asyncio.gather(*waiting[:4], return_exceptions=True)
        invoker.hold.set()
        assert (await waiting[4]).output == b"{}"
        await first
        assert comet.unanswered == 0
        assert len(invoker.calls) == 2


async def test_a_client_over_its_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls_server, "WINDOW", 2)
    invoker = FakeInvoker()
    invoker.hold = asyncio.Event()
    async with serving(invoker=invoker) as server, raw(server.port) as client:
        stream = client.method("stream_stream", "Calls")(metadata=metadata())
        assert pb.ResultBatch.FromString(await stream.read()).window == 2
        await stream.write(_batch(1, 2, 3))
        result = pb.ResultBatch.FromString(await stream.read()).results[0]
        assert (result.seq, result.failure.code) == (3, "queue_full")
        assert result.failure.delivered == pb.DELIVERY_NO
        invoker.hold.set()
        await stream.done_writing()
        seqs = []
        while (data := await stream.read()) is not grpc.aio.EOF:
            seqs += [result.seq for result in pb.ResultBatch.FromString(data).results]
        assert sorted(seqs) == [1, 2]


def _batch(*seqs: int, cancel: tuple[int, ...] = ()) -> bytes:
    identity = dict(metadata())["x-nova-identity"]
    calls = [
        pb.Call(seq=seq, meta=pb.CallMeta(identity=identity), request=pb.InvokeRequest(function="hello"))
        for seq in seqs
    ]
    return pb.CallBatch(calls=calls, cancel=cancel).SerializeToString()


async def test_a_caller_that_leaves_takes_its_call_with_it() -> None:
    invoker = FakeInvoker()
    invoker.hold = asyncio.Event()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        task = asyncio.create_task(comet.invoke(make_call()))
        await invoker.began.wait()
        task.cancel()
        await asyncio.wait_for(invoker.cancelled.wait(), 20)
        await until(lambda: comet.unanswered == 0)


async def test_a_call_that_is_cancelled_with_its_own_batch_never_begins() -> None:
    invoker = FakeInvoker()
    async with serving(invoker=invoker) as server, raw(server.port) as client:
        stream = client.method("stream_stream", "Calls")(metadata=metadata())
        await stream.read()
        await stream.write(_batch(1, cancel=(1,)))
        result = pb.ResultBatch.FromString(await stream.read()).results[0]
        assert (result.failure.code, result.failure.delivered) == ("cancelled", pb.DELIVERY_NO)
        assert not invoker.calls


async def test_the_server_hears_of_the_time_that_is_left() -> None:
    invoker = FakeInvoker()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        call = make_call(timeout_ms=10_000)
        call.received -= 6
        await comet.invoke(call)
        assert invoker.calls[0].timeout_ms is not None
        assert invoker.calls[0].timeout_ms <= 4000
        call = make_call(timeout_ms=1000)
        call.received -= 2
        with pytest.raises(RemoteFailure) as caught:
            await comet.invoke(call)
        assert (caught.value.code, caught.value.delivered) == ("timeout", "no")
        assert len(invoker.calls) == 1


async def test_a_call_that_is_never_answered_ends_at_its_deadline_and_is_cancelled() -> None:
    invoker = FakeInvoker()
    invoker.hold = asyncio.Event()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        with pytest.raises(RemoteFailure) as caught:
            await comet.invoke(make_call(timeout_ms=100))
        assert (caught.value.code, caught.value.delivered) == ("timeout", "unknown")
        await asyncio.wait_for(invoker.cancelled.wait(), 20)


async def test_payloads_up_to_the_limit_pass_and_larger_ones_are_refused_by_name() -> None:
    invoker = FakeInvoker()
    async with serving(invoker=invoker, max_message_mb=1) as server, connected(server.port, max_message_mb=1) as comet:
        largest = b'"%s"' % (b"x" * ((1 << 20) - ENVELOPE - 2))
        assert (await comet.invoke(make_call(largest))).output == largest
        with pytest.raises(NovaError) as caught:
            await comet.invoke(make_call(largest + b" "))
        assert caught.value.code == "payload_too_large"
        assert caught.value.extra["limit_bytes"] == (1 << 20) - ENVELOPE
        invoker.output = b'"%s"' % (b"x" * (1 << 20))
        with pytest.raises(RemoteFailure) as failed:
            await comet.invoke(make_call())
        assert (failed.value.code, failed.value.delivered) == ("payload_too_large", "yes")
        invoker.output = None
        assert (await comet.invoke(make_call())).output == b"{}", "the connection goes on"


async def test_many_large_calls_at_once_arrive_whole() -> None:
    async with serving(invoker=FakeInvoker()) as server, connected(server.port) as comet:
        payloads = [b'"%s"' % (bytes([97 + n]) * 3_000_000) for n in range(12)]
        answers = await asyncio.gather(*(comet.invoke(make_call(payload)) for payload in payloads))
        assert [answer.output for answer in answers] == payloads


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("function", "../etc", "not_found"),
        ("function", "", "not_found"),
        ("request_id", 'x","output":', "validation_failed"),
        ("qualifier", "no such\n", "validation_failed"),
        ("payload", b'{"a":1}\n{"b":2}', "bad_payload"),
        ("timeout_ms", 900_001, "validation_failed"),
        ("trigger", "magic", "validation_failed"),
        ("sticky_key", "k" * 513, "validation_failed"),
        ("idempotency_key", "k" * 513, "validation_failed"),
        ("caller", "k" * 513, "validation_failed"),
        ("client_request_id", "two words", "validation_failed"),
    ],
)
async def test_a_bad_call_is_refused_and_its_neighbours_are_answered(field: str, value: object, code: str) -> None:
    invoker = FakeInvoker()
    async with serving(invoker=invoker) as server, raw(server.port) as client:
        stream = client.method("stream_stream", "Calls")(metadata=metadata())
        await stream.read()
        batch = pb.CallBatch.FromString(_batch(1, 2))
        setattr(batch.calls[0].request, field, value)
        await stream.write(batch.SerializeToString())
        results: dict[int, pb.Result] = {}
        while len(results) < 2:
            results |= {result.seq: result for result in pb.ResultBatch.FromString(await stream.read()).results}
        assert results[1].failure.code == code
        assert results[2].ok.output == b"{}"
        assert len(invoker.calls) == 1
