"""The server as its port shows it: who gets in, what is refused, how it goes away."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from nova.domain.call import Accepted, AsyncOptions, CallRequest
from nova.domain.identity import Scope
from nova.domain.node import NodeReport, WarmPool
from nova.domain.ports import Warmth
from nova.errors import FunctionError, NovaError
from nova.rpc import nova_pb2 as pb
from nova.rpc import server as rpc_server
from nova.rpc.failures import TRAILER, RemoteFailure
from nova.rpc.transport import AUTHORIZATION, EXECUTION, target
from nova.security.service import ServiceToken
from tests.gateway.fakes import FakeInvoker
from tests.rpc.planes import ALICE, connected, make_call, metadata, raw, server_of, serving, until

pytestmark = pytest.mark.anyio
REPORT = NodeReport(
    "n-1",
    "host",
    "10.0.0.1:9090",
    cpu_cores=4,
    cpu_used=1.5,
    memory_mb=8192,
    memory_used_mb=100,
    max_instances=50,
    instances=2,
    inflight=1,
    queued=3,
    warm=(WarmPool("acme", "prod", "hello", 7, 2, 1),),
    backends=("sandbox",),
    arch="x86_64",
    version="0.1.0",
    labels={"zone": "a"},
)


class FakeScaler:
    def __init__(self) -> None:
        self.wishes: list[tuple[Scope, str, int, float]] = []

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        self.wishes.append((scope, function, replicas, ttl_s))
        return replicas

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        self.wishes.append((scope, f"{function}:{qualifier}", replicas, ttl_s))
        return Warmth(1, replicas - 1)


class FakeAcceptor:
    def __init__(self) -> None:
        self.taken: list[tuple[CallRequest, AsyncOptions]] = []

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        self.taken.append((call, options))
        return Accepted("a-1", "queued", replayed=True)


def problem(error: grpc.aio.AioRpcError) -> pb.Failure:
    return pb.Failure.FromString(dict(error.trailing_metadata() or ())[TRAILER])


async def invoke(port: int, message: Message, **more: str) -> pb.InvokeResponse:
    async with raw(port) as client:
        data = await client.method("unary_unary", "Invoke")(message.SerializeToString(), metadata=metadata(**more))
    return pb.InvokeResponse.FromString(data)


async def test_invoke_answers_one_call() -> None:
    invoker = FakeInvoker()
    async with serving(invoker=invoker) as server:
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        answer = await invoke(server.port, pb.InvokeRequest(function="hello", payload=b"[1,\n2]"), traceparent=trace)
    assert (answer.output, answer.version) == (b"[1, 2]", 7)
    call = invoker.calls[0]
    assert (call.trigger, call.identity, call.source_address) == ("grpc", ALICE, "203.0.113.9")
    assert (call.traceparent, call.timeout_ms, call.attempt) == (trace, None, 1)
    assert len(call.request_id) == 36


async def test_an_error_of_the_function_is_an_answer() -> None:
    invoker = FakeInvoker()
    invoker.error = FunctionError("ValueError", "no")
    async with serving(invoker=invoker) as server:
        answer = await invoke(server.port, pb.InvokeRequest(function="hello"))
    assert (answer.error.type, answer.HasField("output")) == ("ValueError", False)


@pytest.mark.parametrize(
    ("code", "status", "delivered"),
    [
        ("timeout", grpc.StatusCode.DEADLINE_EXCEEDED, pb.DELIVERY_NO),
        ("cancelled", grpc.StatusCode.CANCELLED, pb.DELIVERY_UNKNOWN),
        ("instance_lost", grpc.StatusCode.UNAVAILABLE, pb.DELIVERY_YES),
        ("queue_full", grpc.StatusCode.RESOURCE_EXHAUSTED, pb.DELIVERY_NO),
        ("capacity", grpc.StatusCode.RESOURCE_EXHAUSTED, pb.DELIVERY_NO),
        ("draining", grpc.StatusCode.UNAVAILABLE, pb.DELIVERY_NO),
        ("build_pending", grpc.StatusCode.UNAVAILABLE, pb.DELIVERY_NO),
        ("rate_limited", grpc.StatusCode.RESOURCE_EXHAUSTED, pb.DELIVERY_NO),
        ("bad_payload", grpc.StatusCode.INVALID_ARGUMENT, pb.DELIVERY_NO),
        ("payload_too_large", grpc.StatusCode.INVALID_ARGUMENT, pb.DELIVERY_NO),
        ("forbidden", grpc.StatusCode.PERMISSION_DENIED, pb.DELIVERY_NO),
        ("not_found", grpc.StatusCode.NOT_FOUND, pb.DELIVERY_NO),
        ("build_failed", grpc.StatusCode.FAILED_PRECONDITION, pb.DELIVERY_NO),
        ("unsupported", grpc.StatusCode.FAILED_PRECONDITION, pb.DELIVERY_NO),
        ("recursion", grpc.StatusCode.FAILED_PRECONDITION, pb.DELIVERY_NO),
        ("internal", grpc.StatusCode.INTERNAL, pb.DELIVERY_UNKNOWN),
    ],
)
async def test_refusals_have_a_status_and_a_problem(code: str, status: grpc.StatusCode, delivered: int) -> None:
    invoker = FakeInvoker()
    invoker.refusal = NovaError(code, "wörds", retry_after_s=3)
    async with serving(invoker=invoker) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await invoke(server.port, pb.InvokeRequest(function="hello"))
    found = problem(caught.value)
    assert (caught.value.code(), caught.value.details()) == (status, "wörds")
    assert (found.code, found.delivered, found.retry_after_ms) == (code, delivered, 3000)


async def test_the_deadline_of_an_rpc_is_the_calls_and_its_end_cancels_it() -> None:
    invoker = FakeInvoker()
    invoker.hold = asyncio.Event()
    async with serving(invoker=invoker) as server, raw(server.port) as client:
        call = client.method("unary_unary", "Invoke")
        message = pb.InvokeRequest(function="hello").SerializeToString()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(message, metadata=metadata(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert invoker.calls[0].timeout_ms is not None
        assert 0 < invoker.calls[0].timeout_ms <= 200
        await asyncio.wait_for(invoker.cancelled.wait(), 20)
        invoker.cancelled.clear()
        invoker.began.clear()
        running = call(message, metadata=metadata())
        await asyncio.wait_for(invoker.began.wait(), 20)
        running.cancel()
        await asyncio.wait_for(invoker.cancelled.wait(), 20)


async def test_async_calls_scaling_and_eviction_reach_their_ports() -> None:
    acceptor, scaler, evicted = FakeAcceptor(), FakeScaler(), []

    def evict(scope: Scope, function: str) -> int:
        evicted.append((scope, function))
        return 3

    place = Scope("acme", "prod")
    ports = {"acceptor": acceptor, "scaler": scaler, "evict": evict, "invoker": FakeInvoker()}
    async with serving(**ports) as server, connected(server.port) as comet:
        options = AsyncOptions(5, 100, None, 60, 1.5, "once", 99)
        call = make_call(b'{"a":1}', scope=place, timeout_ms=1234, tracestate=None, caller="async:x")
        assert await comet.accept(call, options) == Accepted("a-1", "queued", replayed=True)
        assert await comet.scale(place, "hello", 4, ttl_s=30) == 4
        assert await comet.prewarm(place, "hello", 3, qualifier="7", ttl_s=5) == Warmth(1, 2)
        assert await comet.prewarm(place, "hello", 1, qualifier=None, ttl_s=5) == Warmth(1, 0)
        assert await comet.evict(place, "hello") == 3
    taken, given = acceptor.taken[0]
    assert given == options
    assert (taken.payload, taken.timeout_ms, taken.scope, taken.caller) == (b'{"a":1}', 1234, place, "async:x")
    assert taken.idempotency_key == "once"
    assert scaler.wishes == [(place, "hello", 4, 30), (place, "hello:7", 3, 5), (place, "hello:None", 1, 5)]
    assert evicted == [(place, "hello")]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.ScaleRequest(function="f", replicas=20_000, ttl_s=1), "replicas"),
        (pb.ScaleRequest(function="f", replicas=1, ttl_s=0), "ttl_s"),
        (pb.ScaleRequest(function="f", replicas=1, ttl_s=float("nan")), "ttl_s"),
        (pb.ScaleRequest(function="../f", replicas=1, ttl_s=1), None),
        (
            pb.AsyncRequest(request=pb.InvokeRequest(function="f"), options=pb.AsyncOptions(delay_s=-1)),
            "options.delay_s",
        ),
        (pb.EvictRequest(function=""), None),
    ],
)
async def test_bad_actions_are_refused_by_field(message: Message, field: str | None) -> None:
    name = {"ScaleRequest": "Scale", "AsyncRequest": "InvokeAsync", "EvictRequest": "EvictPool"}[
        message.DESCRIPTOR.name
    ]
    async with (
        serving(acceptor=FakeAcceptor(), scaler=FakeScaler(), evict=lambda *_: 0) as server,
        raw(server.port) as client,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.method("unary_unary", name)(message.SerializeToString(), metadata=metadata())
    found = problem(caught.value)
    assert found.code == ("validation_failed" if field else "not_found")
    assert field is None or f'"field":"{field}"' in found.details.decode()


async def test_reports_come_at_once_and_again_and_end_with_the_server() -> None:
    server = server_of(invoker=FakeInvoker(), report=lambda: REPORT)
    await server.start()
    async with connected(server.port) as comet:
        stream = comet.reports()
        assert await anext(stream) == REPORT
        assert await asyncio.wait_for(anext(stream), 20) == REPORT
        closing = asyncio.create_task(server.close())
        states = [report.state async for report in stream]
        assert states[-1] == "draining"
        await closing


@pytest.mark.parametrize("kind", ["none", "wrong", "key"])
async def test_nothing_but_health_is_answered_without_the_token(kind: str) -> None:
    values = {"none": (), "wrong": ((AUTHORIZATION, "Bearer nope"),), "key": (("x-api-key", "nk_1"),)}[kind]
    app_called: list[str] = []

    async def app(scope: object, receive: object, send: object) -> None:
        app_called.append("called")

    invoker = FakeInvoker()
    ports = {"acceptor": FakeAcceptor(), "scaler": FakeScaler(), "evict": lambda *_: 0, "report": lambda: REPORT}
    async with serving(invoker=invoker, application=app, **ports) as server, raw(server.port) as client:
        for method in pb.DESCRIPTOR.services_by_name["Execution"].methods:
            one, many = method.client_streaming, method.server_streaming
            call = client.method(f"{'stream' if one else 'unary'}_{'stream' if many else 'unary'}", method.name)
            running = call(metadata=values) if one else call(b"", metadata=values)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (running.read() if many else running)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, method.name
            assert problem(caught.value).code == "unauthenticated"
        stub = health_pb2_grpc.HealthStub(client.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    assert not invoker.calls
    assert not app_called


async def test_a_token_alone_is_nobody_and_a_forged_or_foreign_identity_neither() -> None:
    invoker = FakeInvoker()
    good = dict(metadata())
    head, body, signature = good["x-nova-identity"].split(".")
    cases: list[tuple[Mapping[str, str], str]] = [
        ({"x-nova-identity": ""}, "unauthenticated"),
        ({"x-nova-identity": "nonsense"}, "unauthenticated"),
        ({"x-nova-identity": f"{head}.{body}x.{signature}"}, "unauthenticated"),
        ({"x-nova-tenant": "other"}, "scope_forbidden"),
        ({"x-nova-namespace": "other"}, "scope_forbidden"),
        ({"x-nova-identity": dict(metadata(scope=None))["x-nova-identity"]}, "scope_required"),  # type: ignore[arg-type]
    ]
    async with serving(invoker=invoker) as server, raw(server.port) as client:
        for change, code in cases:
            values = tuple({**good, **change}.items())
            call = client.method("unary_unary", "Invoke")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(pb.InvokeRequest(function="f").SerializeToString(), metadata=values)
            assert problem(caught.value).code == code
    assert not invoker.calls


async def test_a_connection_with_another_token_takes_no_calls() -> None:
    token = ServiceToken(b"another-token-altogether")
    async with serving(invoker=FakeInvoker()) as server, connected(server.port, token=token) as comet:
        with pytest.raises(RemoteFailure) as caught:
            await comet.invoke(make_call())
        assert (caught.value.code, caught.value.delivered) == ("dependency_unavailable", "no")


async def test_what_cannot_be_read_is_refused_and_the_server_lives() -> None:
    garbage = b"\xff\xff\xff\xff garbage"
    async with (
        serving(invoker=FakeInvoker(), scaler=FakeScaler(), acceptor=FakeAcceptor(), evict=lambda *_: 0) as server,
        raw(server.port) as client,
    ):
        for name in ("Invoke", "Scale", "InvokeAsync", "EvictPool"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.method("unary_unary", name)(garbage, metadata=metadata())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert problem(caught.value).code == "validation_failed"
        stream = client.method("stream_stream", "Calls")(metadata=metadata())
        await stream.read()
        await stream.write(garbage)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.method("unary_unary", "NoSuchThing")(b"", metadata=metadata())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await invoke(server.port, pb.InvokeRequest(function="f"))).version == 7


async def test_a_message_over_the_limit_is_refused_and_the_server_lives() -> None:
    big = pb.InvokeRequest(function="f", payload=b"[" + b" " * (2 << 20) + b"]").SerializeToString()
    async with serving(invoker=FakeInvoker(), max_message_mb=1) as server, raw(server.port) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.method("unary_unary", "Invoke")(big, metadata=metadata())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await invoke(server.port, pb.InvokeRequest(function="f"))).version == 7


async def test_bytes_that_are_no_http2_harm_nobody() -> None:
    async with serving(invoker=FakeInvoker()) as server:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 500):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall(data)
        assert (await invoke(server.port, pb.InvokeRequest(function="f"))).version == 7


async def test_what_this_process_does_not_do_is_not_there() -> None:
    async with serving() as server, raw(server.port) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.method("unary_unary", "Invoke")(b"", metadata=metadata())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with serving(invoker=FakeInvoker()) as server, connected(server.port) as comet:
        with pytest.raises(RemoteFailure) as refused:
            await comet.scale(Scope(), "f", 1, ttl_s=1)
        assert (refused.value.code, refused.value.delivered) == ("unsupported", "no")


async def test_health_follows_the_parts_of_the_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"postgres": True, "listener": True}
    hang = False
    monkeypatch.setattr(rpc_server, "CHECK_S", 0.05)
    monkeypatch.setattr(rpc_server, "_CHECK_TIMEOUT_S", 0.1)

    async def healthy() -> Mapping[str, bool]:
        if hang:
            await asyncio.Event().wait()
        return parts

    server = server_of(invoker=FakeInvoker(), healthy=healthy)
    await server.start()
    async with raw(server.port) as client:
        stub = health_pb2_grpc.HealthStub(client.channel)

        async def standing(name: str) -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

        async def becomes(name: str, wanted: str) -> None:
            async with asyncio.timeout(20):
                while await standing(name) != wanted:
                    await asyncio.sleep(0.02)

        for name in ("", EXECUTION, "postgres", "listener"):
            assert await standing(name) == "SERVING"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await standing("no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        parts["postgres"] = False
        await becomes("", "NOT_SERVING")
        assert [await standing(name) for name in (EXECUTION, "postgres", "listener")] == [
            "NOT_SERVING",
            "NOT_SERVING",
            "SERVING",
        ]
        parts["postgres"] = True
        await becomes("", "SERVING")
        hang = True
        await becomes(EXECUTION, "NOT_SERVING")
        await becomes("postgres", "NOT_SERVING")
        hang = False
        await becomes(EXECUTION, "SERVING")
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        closing = asyncio.create_task(server.close())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await closing


async def test_reflection_lists_and_describes_the_services() -> None:
    async with serving(invoker=FakeInvoker()) as server, raw(server.port) as client:
        stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        stream = stub.ServerReflectionInfo(metadata=metadata())
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await stream.read()).list_services_response.service}
        assert {EXECUTION, "grpc.health.v1.Health"} <= names
        await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=EXECUTION))
        assert (await stream.read()).file_descriptor_response.file_descriptor_proto == [pb.DESCRIPTOR.serialized_pb]
        await stream.done_writing()


async def test_closing_answers_what_is_in_work_and_refuses_what_comes() -> None:
    invoker = FakeInvoker()
    invoker.hold = asyncio.Event()
    server = server_of(invoker=invoker, drain_s=5)
    await server.start()
    async with connected(server.port) as comet:
        call = asyncio.create_task(comet.invoke(make_call(b"1")))
        await invoker.began.wait()
        closing = asyncio.create_task(server.close())
        await until(lambda: not comet.usable)
        with pytest.raises(RemoteFailure) as caught:
            await comet.invoke(make_call())
        assert (caught.value.code, caught.value.delivered) == ("draining", "no")
        assert not call.done()
        assert not closing.done()
        invoker.hold.set()
        assert (await call).output == b"1"
        await asyncio.wait_for(closing, 20)
        assert len(invoker.calls) == 1
        with pytest.raises(RemoteFailure) as caught:
            await comet.invoke(make_call())
        assert caught.value.delivered == "no"


async def test_closing_ends_calls_that_outlive_the_drain() -> None:
    invoker = FakeInvoker()
    invoker.hold = asyncio.Event()
    server = server_of(invoker=invoker, drain_s=0.2)
    await server.start()
    async with connected(server.port) as comet:
        call = asyncio.create_task(comet.invoke(make_call()))
        await invoker.began.wait()
        await server.close()
        with pytest.raises(RemoteFailure) as caught:
            await call
        assert (caught.value.code, caught.value.delivered) == ("instance_lost", "unknown")
        await asyncio.wait_for(invoker.cancelled.wait(), 20)


async def test_a_successor_takes_over_the_port_before_the_first_one_has_gone() -> None:
    old_invoker, new_invoker = FakeInvoker(), FakeInvoker()
    old_invoker.hold = asyncio.Event()
    old = server_of(invoker=old_invoker)
    await old.start()
    async with connected(old.port) as comet:
        slow = asyncio.create_task(comet.invoke(make_call(b"1")))
        await old_invoker.began.wait()
        async with serving(f"127.0.0.1:{old.port}", invoker=new_invoker) as new:
            assert new.port == old.port
            closing = asyncio.create_task(old.close())
            await until(lambda: not comet.usable)
            old_invoker.hold.set()
            assert (await slow).output == b"1"
            await closing
            await until(lambda: comet.usable)
            assert (await comet.invoke(make_call(b"2"))).output == b"2"
    assert len(new_invoker.calls) == 1


async def test_a_connection_comes_back_when_the_server_does() -> None:
    first = server_of(invoker=FakeInvoker())
    await first.start()
    async with connected(first.port) as comet:
        await comet.invoke(make_call())
        await first.close()
        await until(lambda: not comet.usable)
        with pytest.raises(RemoteFailure):
            await comet.invoke(make_call())
        async with serving(f"127.0.0.1:{first.port}", invoker=FakeInvoker()):
            await until(lambda: comet.usable)
            assert (await comet.invoke(make_call(b"3"))).output == b"3"


async def test_a_connection_to_nothing_refuses_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with connected(port) as comet:
        async with asyncio.timeout(20):
            with pytest.raises(RemoteFailure) as caught:
                await comet.invoke(make_call())
        assert (caught.value.code, caught.value.delivered) == ("dependency_unavailable", "no")


async def test_a_connection_can_be_closed_at_any_moment_of_its_making() -> None:
    async with serving(invoker=FakeInvoker()) as server:
        for turns in range(60):
            async with asyncio.timeout(20), connected(server.port):
                for _ in range(turns):
                    await asyncio.sleep(0)


async def test_unix_sockets(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/rpc.sock"
    for _ in range(2):  # the socket file of the first one is no obstacle
        async with serving(address, invoker=FakeInvoker()) as server, connected(address) as comet:
            assert server.port == 0
            assert (await comet.invoke(make_call(b"5"))).output == b"5"


async def test_an_address_that_is_taken_by_others_is_an_os_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = server_of(f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(OSError, match="cannot listen on 127"):
            await server.start()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (":9090", "127.0.0.1:9090"),
        ("0.0.0.0:9090", "0.0.0.0:9090"),
        ("[::1]:9090", "[::1]:9090"),
        ("comet.example:9090", "comet.example:9090"),
        ("unix:/run/nova.sock", "unix:/run/nova.sock"),
    ],
)
def test_addresses(text: str, found: str) -> None:
    assert target(text) == found


@pytest.mark.parametrize("text", ["", "9090", "host", "host:port", ":70000", "::1:9090", "unix:"])
def test_bad_addresses_name_the_setting(text: str) -> None:
    with pytest.raises(NovaError) as caught:
        target(text)
    assert caught.value.errors[0].field == "grpc.addr"
