"""One connection to one comet: calls, requests and actions of this process, carried there and back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential, wait_random

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import Accepted, AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Identity, Scope
from nova.domain.node import NodeReport
from nova.domain.ports import Warmth
from nova.domain.stream import Sink
from nova.errors import NovaError
from nova.payload import too_large
from nova.rpc import bridge, messages, streams
from nova.rpc import nova_pb2 as pb
from nova.rpc.calls_client import CallStream
from nova.rpc.failures import lost, of_rpc, out_of_time, unreachable
from nova.rpc.transport import (
    AUTHORIZATION,
    CONNECT_S,
    ENVELOPE,
    EXECUTION,
    GRACE_S,
    IDENTITY,
    MAX_MESSAGE_MB,
    REQUEST_ID,
    TRACEPARENT,
    TRACESTATE,
    being_cancelled,
    channel_options,
    target,
)
from nova.security.assertion import ADMITTED, HEADER, Assertions
from nova.security.guards import Caller
from nova.security.service import ServiceToken
from nova.service import Background

log = structlog.get_logger(__name__)
_ACTION_S = 10.0
"""What an action that is no call may take."""
_HELLO_S = 3.0
"""A comet that accepts a connection and says nothing for so long counts as not there."""


class CometConnection:
    """Implements the ports Invoker, Streamer, Acceptor and Scaler for one address. A service: connects, and connects again.

    Every method raises :class:`~nova.rpc.failures.RemoteFailure`, whose ``delivered`` says whether the call may be sent
    elsewhere. ``me`` is whom actions of this process itself act as.
    """

    def __init__(
        self,
        address: str,
        token: ServiceToken,
        assertions: Assertions,
        *,
        me: Identity | None = None,
        clock: Clock = SYSTEM_CLOCK,
        max_message_mb: int = MAX_MESSAGE_MB,
    ) -> None:
        self.address = address
        self._target = target(address)
        self._token = token
        self._assertions = assertions
        self._me = Caller(me or Identity("service:platform", frozenset(), platform=True), None)
        self._clock = clock
        self._limit = max_message_mb << 20
        self._options = channel_options(max_message_mb)
        self._background = Background("comet-connection")
        self._stream: CallStream | None = None
        self._coming: asyncio.Future[None] | None = None
        self._channel: grpc.aio.Channel | None = None

    @property
    def usable(self) -> bool:
        """Is there a connection that takes calls right now?"""
        return self._stream is not None and self._stream.usable

    @property
    def unanswered(self) -> int:
        """Calls on their way."""
        return 0 if self._stream is None else self._stream.unanswered

    async def start(self) -> None:
        """Begin to connect; a comet that is not there yet is no error."""
        self._channel = grpc.aio.insecure_channel(self._target, options=self._options)
        self._coming = asyncio.get_running_loop().create_future()
        self._background.spawn("keep", self._keep(self._channel))

    async def close(self) -> None:
        """Calls still on their way end as ``instance_lost``: close after whoever makes calls."""
        await self._background.close()
        if self._channel is not None:
            await self._channel.close()

    async def _keep(self, channel: grpc.aio.Channel) -> None:
        """Always one stream, as soon as the other end takes one."""
        while True:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type((grpc.aio.AioRpcError, NovaError, TimeoutError)),
                wait=wait_exponential(multiplier=0.05, max=1) + wait_random(0, 0.05),
            ):
                with attempt:
                    stream = await self._open(channel)
            self._stream = stream
            self._settle()
            try:
                await stream.run()
            except grpc.aio.AioRpcError as exc:
                if being_cancelled():
                    raise asyncio.CancelledError from None
                log.warning("connection to comet broke", address=self.address, error=exc.details())
            finally:
                self._stream = None
                self._coming = asyncio.get_running_loop().create_future()

    async def _open(self, channel: grpc.aio.Channel) -> CallStream:
        if self._coming is None:
            self._coming = asyncio.get_running_loop().create_future()
        method: Any = channel.stream_stream(f"/{EXECUTION}/Calls")
        call = method(metadata=self._metadata())
        stream = CallStream(call, self.address, self._clock.monotonic, self._limit)
        try:
            async with asyncio.timeout(_HELLO_S):
                await stream.open()
            if being_cancelled():
                raise asyncio.CancelledError
        except BaseException as exc:
            call.cancel()
            self._settle()
            if isinstance(exc, grpc.aio.AioRpcError) and exc.code() is grpc.StatusCode.UNAUTHENTICATED:
                log.error("comet does not accept this process's service token", address=self.address)
            if being_cancelled():
                raise asyncio.CancelledError from None
            raise
        return stream

    def _settle(self) -> None:
        """An attempt to connect has ended; whoever waits for it looks how."""
        if self._coming is not None and not self._coming.done():
            self._coming.set_result(None)
        self._coming = None

    async def _ready(self, limit_s: float = CONNECT_S) -> CallStream:
        """The stream; waits for a connection that is being made, not for one that has just failed."""
        if self._stream is None and self._coming is not None:
            await asyncio.wait({self._coming}, timeout=max(0.0, min(limit_s, CONNECT_S)))
        if self._stream is None:
            raise unreachable(self.address)
        return self._stream

    async def invoke(self, call: CallRequest) -> CallResult:
        stream = self._stream
        if stream is None:
            left = CONNECT_S
            if call.timeout_ms is not None:
                left = call.received + call.timeout_ms / 1000 - self._clock.monotonic()
            stream = await self._ready(left)
        return await stream.invoke(call, self._assertions.sign(Caller(call.identity, call.source_address), call.scope))

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """One call on a stream of its own; see :class:`~nova.domain.ports.Streamer`."""
        if len(call.payload) > self._limit - ENVELOPE:
            raise too_large(self._limit - ENVELOPE)
        left, remaining_ms = None, 0
        if call.timeout_ms is not None:
            left = call.received + call.timeout_ms / 1000 - self._clock.monotonic()
            if left <= 0:
                raise out_of_time("no")
            remaining_ms = max(1, int(left * 1000))
        await self._ready(CONNECT_S if left is None else left)
        message = pb.InvokeRequest()
        try:
            messages.write_request(message, call, remaining_ms)
        except ValueError:
            raise NovaError("validation_failed", "a text of the call is not valid Unicode") from None
        method: Any = self._bound.unary_stream(f"/{EXECUTION}/InvokeStream")
        async with self._translated():
            limit_s = None if left is None else left + GRACE_S
            rpc = method(message.SerializeToString(), metadata=self._of_call(call), timeout=limit_s)
            try:
                return await streams.follow(rpc, sink, lost(self.address))
            finally:
                rpc.cancel()

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        message = pb.AsyncRequest()
        messages.write_request(message.request, call, call.timeout_ms or 0)
        if options.idempotency_key is not None:
            message.request.idempotency_key = options.idempotency_key
        messages.write_options(message.options, options)
        data = await self._unary("InvokeAsync", message.SerializeToString(), self._of_call(call))
        answer = pb.AsyncResponse.FromString(data)
        return Accepted(answer.invocation_id, answer.status, answer.replayed)

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        message = pb.ScaleRequest(function=function, replicas=replicas, ttl_s=ttl_s)
        data = await self._unary("Scale", message.SerializeToString(), self._acting(self._me, scope))
        return pb.ScaleResponse.FromString(data).instances

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        message = pb.ScaleRequest(
            function=function, replicas=replicas, ttl_s=ttl_s, qualifier=qualifier or "", prewarm=True
        )
        data = await self._unary("Scale", message.SerializeToString(), self._acting(self._me, scope))
        answer = pb.ScaleResponse.FromString(data)
        return Warmth(answer.ready, answer.instances - answer.ready)

    async def evict(self, scope: Scope, function: str) -> int:
        """Drain the function's instances there; how many they are."""
        message = pb.EvictRequest(function=function)
        data = await self._unary("EvictPool", message.SerializeToString(), self._acting(self._me, scope))
        return pb.EvictResponse.FromString(data).instances

    async def reports(self) -> AsyncIterator[NodeReport]:
        """The node's report, about once a second, until the server drains or the connection breaks (RemoteFailure)."""
        await self._ready()
        method: Any = self._bound.unary_stream(f"/{EXECUTION}/Heartbeat")
        call = method(pb.HeartbeatRequest().SerializeToString(), metadata=self._metadata())
        try:
            async with self._translated():
                async for data in call:
                    yield messages.read_report(pb.NodeReport.FromString(data))
        finally:
            call.cancel()

    async def proxy(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """An ASGI application: the one behind the other end, with this process's word on who is asking.

        Whom the door admitted stands in the scope under :data:`~nova.security.assertion.ADMITTED`, or signed in the header
        ``x-nova-identity``. Refusals are raised as long as no answer has begun; afterwards the answer breaks off.
        """
        admitted: tuple[Caller, Scope | None] | None = scope.get(ADMITTED)
        identity = self._assertions.sign(*admitted) if admitted is not None else bridge.header(scope, HEADER)
        metadata = self._metadata() if identity is None else (*self._metadata(), (IDENTITY, identity))
        if (request_id := scope.get(bridge.SCOPE_REQUEST_ID)) is not None:
            metadata += ((REQUEST_ID, request_id),)
        await self._ready()
        method: Any = self._bound.stream_stream(f"/{EXECUTION}/ProxyHTTP")
        async with self._translated():
            await bridge.forward(lambda: method(metadata=metadata), scope, receive, send, lost(self.address))

    async def _unary(self, name: str, data: bytes, metadata: tuple[tuple[str, str], ...]) -> bytes:
        await self._ready()
        method: Any = self._bound.unary_unary(f"/{EXECUTION}/{name}")
        async with self._translated():
            answer: bytes = await method(data, metadata=metadata, timeout=_ACTION_S)
        return answer

    @property
    def _bound(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise unreachable(self.address)
        return self._channel

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as exc:
            if being_cancelled():
                raise asyncio.CancelledError from None
            raise of_rpc(exc, self.address) from None

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return ((AUTHORIZATION, self._token.bearer.decode()),)

    def _of_call(self, call: CallRequest) -> tuple[tuple[str, str], ...]:
        metadata = self._acting(Caller(call.identity, call.source_address), call.scope)
        if call.traceparent is not None:
            metadata += ((TRACEPARENT, call.traceparent),)
            if call.tracestate is not None:
                metadata += ((TRACESTATE, call.tracestate),)
        return metadata

    def _acting(self, caller: Caller, scope: Scope) -> tuple[tuple[str, str], ...]:
        return (*self._metadata(), (IDENTITY, self._assertions.sign(caller, scope)))
