"""The RPCs of ``nova.v1.Execution`` as this process can answer them: a port that is not here is an RPC that is not there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from starlette.types import ASGIApp

from nova.clock import Clock
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.names import is_name
from nova.domain.node import NodeReport
from nova.domain.ports import Acceptor, Invoker, Scaler, Streamer
from nova.errors import NovaError, draining, invalid, not_found
from nova.rpc import bridge_server, identity, messages, streams
from nova.rpc import nova_pb2 as pb
from nova.rpc.calls_server import ServedCalls
from nova.rpc.failures import abort, refusal
from nova.rpc.transport import IDENTITY, TRACEPARENT, TRACESTATE, Context, metadata_of
from nova.security.assertion import Assertions
from nova.service import Background

REPORT_S = 1.0
_MAX_REPLICAS = 10_000
_MAX_TTL_S = 86_400.0
M = TypeVar("M", bound=Message)
Unary = Callable[[bytes, Context], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Ports:
    """What this process does for others; None: nothing of the kind."""

    invoker: Invoker | None = None
    acceptor: Acceptor | None = None
    scaler: Scaler | None = None
    evict: Callable[[Scope, str], int] | None = None
    application: ASGIApp | None = None
    report: Callable[[], NodeReport] | None = None


class Execution:
    """The handlers. ``limit`` is the size of a message, in bytes."""

    def __init__(self, ports: Ports, assertions: Assertions, clock: Clock, limit: int) -> None:
        self._ports = ports
        self._assertions = assertions
        self._clock = clock
        self._limit = limit
        self._streams: set[ServedCalls] = set()
        self._background = Background("rpc")
        self._drained = asyncio.Event()

    def drain(self) -> None:
        """Take no more calls: what comes is refused, what is here is answered, streams of reports and events end."""
        self._drained.set()
        for stream in self._streams:
            stream.drain()

    async def close(self) -> None:
        await self._background.close()

    def handlers(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        """By name of the RPC. Messages are read here, not by gRPC, so that one that cannot be read is refused properly."""
        ports = self._ports
        found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        if ports.invoker is not None:
            found["Invoke"] = grpc.unary_unary_rpc_method_handler(_unary(self._invoke))
            found["Calls"] = grpc.stream_stream_rpc_method_handler(self._calls)
        invoker: object = ports.invoker
        if isinstance(invoker, Streamer):
            found["InvokeStream"] = grpc.unary_stream_rpc_method_handler(self._invoke_stream)
        if ports.acceptor is not None:
            found["InvokeAsync"] = grpc.unary_unary_rpc_method_handler(_unary(self._invoke_async))
        if ports.scaler is not None:
            found["Scale"] = grpc.unary_unary_rpc_method_handler(_unary(self._scale))
        if ports.evict is not None:
            found["EvictPool"] = grpc.unary_unary_rpc_method_handler(_unary(self._evict))
        if ports.application is not None:
            found["ProxyHTTP"] = grpc.stream_stream_rpc_method_handler(self._proxy)
        if ports.report is not None:
            found["Heartbeat"] = grpc.unary_stream_rpc_method_handler(self._heartbeat)
        return found

    def _call(self, message: pb.InvokeRequest, context: Context) -> CallRequest:
        if self._drained.is_set():
            raise draining()
        caller, scope = identity.of(context, self._assertions)
        now = self._clock.monotonic()
        call = messages.read_request(message, caller.identity, scope, caller.address, now=now, limit=self._limit)
        values = metadata_of(context)
        messages.read_trace(call, values.get(TRACEPARENT, ""), values.get(TRACESTATE, ""))
        left: float | None = context.time_remaining()
        if left is not None and (call.timeout_ms is None or left * 1000 < call.timeout_ms):
            call.timeout_ms = min(max(1, int(left * 1000)), messages.MAX_TIMEOUT_MS)
        return call

    async def _invoke(self, data: bytes, context: Context) -> bytes:
        assert self._ports.invoker is not None
        result = await self._ports.invoker.invoke(self._call(_parse(pb.InvokeRequest, data), context))
        return self._response(result).SerializeToString()

    def _response(self, result: CallResult) -> pb.InvokeResponse:
        message = pb.InvokeResponse()
        messages.write_response(message, result)
        if message.ByteSize() > self._limit:
            detail = f"the output is larger than a message between planes: {self._limit} bytes"
            raise NovaError("payload_too_large", detail, extra={"version": result.version})
        return message

    async def _invoke_stream(self, data: bytes, context: Context) -> None:
        streamer: object = self._ports.invoker
        assert isinstance(streamer, Streamer)
        try:
            call = self._call(_parse(pb.InvokeRequest, data), context)
        except NovaError as exc:
            await abort(context, exc)
            return
        await streams.serve(streamer, call, context, self._response)

    async def _calls(self, _requests: object, context: Context) -> None:
        assert self._ports.invoker is not None
        stream = ServedCalls(context, self._ports.invoker, self._assertions, self._clock.monotonic, self._limit)
        if self._drained.is_set():
            await abort(context, draining())
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)

    async def _invoke_async(self, data: bytes, context: Context) -> bytes:
        assert self._ports.acceptor is not None
        message = _parse(pb.AsyncRequest, data)
        call = self._call(message.request, context)
        call.timeout_ms = message.request.timeout_ms or None  # the call's own time, not this RPC's
        options = messages.read_options(message.options, call.idempotency_key)
        accepted = await self._ports.acceptor.accept(call, options)
        return pb.AsyncResponse(
            invocation_id=accepted.invocation_id, status=accepted.status, replayed=accepted.replayed
        ).SerializeToString()

    async def _scale(self, data: bytes, context: Context) -> bytes:
        assert self._ports.scaler is not None
        message = _parse(pb.ScaleRequest, data)
        _, scope = identity.of(context, self._assertions)
        _named(message.function)
        if message.replicas > _MAX_REPLICAS:
            raise invalid("replicas", f"at most {_MAX_REPLICAS}")
        if not 0 < message.ttl_s <= _MAX_TTL_S:
            raise invalid("ttl_s", f"above 0 and up to {_MAX_TTL_S:.0f}")
        if message.prewarm:
            there = await self._ports.scaler.prewarm(
                scope, message.function, message.replicas, qualifier=message.qualifier or None, ttl_s=message.ttl_s
            )
            return pb.ScaleResponse(instances=there.ready + there.starting, ready=there.ready).SerializeToString()
        count = await self._ports.scaler.scale(scope, message.function, message.replicas, ttl_s=message.ttl_s)
        return pb.ScaleResponse(instances=count).SerializeToString()

    async def _evict(self, data: bytes, context: Context) -> bytes:
        assert self._ports.evict is not None
        message = _parse(pb.EvictRequest, data)
        _, scope = identity.of(context, self._assertions)
        _named(message.function)
        return pb.EvictResponse(instances=self._ports.evict(scope, message.function)).SerializeToString()

    async def _heartbeat(self, data: bytes, context: Context) -> AsyncIterator[bytes]:
        assert self._ports.report is not None
        while True:
            report = self._ports.report()
            if self._drained.is_set():
                yield messages.write_report(replace(report, state="draining")).SerializeToString()
                return
            yield messages.write_report(report).SerializeToString()
            try:
                async with asyncio.timeout(REPORT_S):
                    await self._drained.wait()
            except TimeoutError:
                pass

    async def _proxy(self, _requests: object, context: Context) -> None:
        assert self._ports.application is not None

        def admit() -> str | None:
            if self._drained.is_set():
                raise draining()
            identity = metadata_of(context).get(IDENTITY)
            return self._assertions.caller(identity).address if identity else None

        try:
            await bridge_server.serve(self._ports.application, context, admit, self._background.spawn, self._drained)
        except NovaError as exc:
            await abort(context, exc)


def _unary(work: Unary) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def answered(data: bytes, context: Context) -> bytes:
        try:
            return await work(data, context)
        except Exception as exc:
            await abort(context, refusal(exc, "RPC"))
            raise

    return answered


def _parse(kind: type[M], data: bytes) -> M:
    try:
        message = kind.FromString(data)
    except DecodeError:
        raise invalid(kind.DESCRIPTOR.name, "the message cannot be read") from None
    return message


def _named(function: str) -> None:
    if not is_name(function):
        raise not_found("function", function[:256])
