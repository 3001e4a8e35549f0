"""The client's end of a Calls stream: calls of many tasks in one stream of batches, a future for each."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import grpc

from nova.domain.call import CallRequest, CallResult
from nova.errors import NovaError, draining
from nova.payload import too_large
from nova.rpc import messages
from nova.rpc import nova_pb2 as pb
from nova.rpc.batches import Outbox
from nova.rpc.failures import RemoteFailure, lost, out_of_time, read, remote_failure, unreachable
from nova.rpc.transport import ENVELOPE, GRACE_S, next_message

if TYPE_CHECKING:
    RpcCall: TypeAlias = grpc.aio.StreamStreamCall[bytes, bytes]

_OVERHEAD = 1024
"""Bytes of a call beside its payload, about."""
_MAX_WAITING = 16_384
"""Calls that wait for the window to open, at most."""


class CallStream:
    """One stream. :meth:`open` it, then :meth:`run` until it ends; meanwhile :meth:`invoke` from any task."""

    def __init__(self, call: "RpcCall", address: str, now: Callable[[], float], limit: int) -> None:
        self._call = call
        self._address = address
        self._now = now
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._outbox: Outbox[pb.CallBatch] = Outbox(pb.CallBatch, lambda: self.unanswered)
        self._waiting: dict[int, asyncio.Future[pb.Result]] = {}
        self._turns: deque[asyncio.Future[None]] = deque()
        self._seq = 0
        self._written = 0
        self._window = 0
        self.unanswered = 0
        """calls that the server has not answered yet, those whose callers left included"""
        self.usable = False
        """takes calls: open, and neither end is closing"""

    async def open(self) -> None:
        """Wait for the server's first word. Raises AioRpcError, or RemoteFailure when it says nothing of use."""
        data = await next_message(self._call)
        self._window = 0 if data is None else pb.ResultBatch.FromString(data).window
        if not self._window:
            raise unreachable(self._address)
        self.usable = True

    async def run(self) -> None:
        """Carry calls and results until the stream ends; fails what is unanswered then. Raises AioRpcError if it broke."""
        writer = asyncio.ensure_future(self._write())
        try:
            await self._read()
        finally:
            self.usable = False
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._fail_all()

    async def invoke(self, call: CallRequest, identity: str) -> CallResult:
        """Send one call, return its result; see :class:`~nova.domain.ports.Invoker`. ``identity`` is the signed assertion.

        Raises RemoteFailure. Cancelling the caller cancels the call.
        """
        if len(call.payload) > self._limit - ENVELOPE:
            raise too_large(self._limit - ENVELOPE)
        deadline = None if call.timeout_ms is None else call.received + call.timeout_ms / 1000
        if self.unanswered >= self._window or self._turns:
            await self._turn(deadline)
        else:
            self.unanswered += 1
        try:
            seq, left = self._send(call, identity, deadline)
        except BaseException:
            self.unanswered -= 1
            self._next_turn()
            raise
        future = self._waiting[seq] = self._loop.create_future()
        timer = None if left is None else self._loop.call_later(left + GRACE_S, self._late, seq)
        try:
            result = await future
        except asyncio.CancelledError:
            self._leave(seq)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if result.HasField("failure"):
            raise read(result.failure)
        return messages.read_response(result.ok)

    def _send(self, call: CallRequest, identity: str, deadline: float | None) -> tuple[int, float | None]:
        """Put the call into the next batch. The number it got, and the seconds it has left."""
        if not self.usable:
            raise _not_sent(draining())
        left, remaining_ms = None, 0
        if deadline is not None:
            left = deadline - self._now()
            if left <= 0:
                raise out_of_time("no")
            remaining_ms = max(1, int(left * 1000))
        self._seq = seq = self._seq + 1
        calls = self._outbox.batch(len(call.payload) + _OVERHEAD).calls
        try:
            self._put(calls.add(), seq, call, identity, remaining_ms)
        except ValueError:
            del calls[-1]
            raise NovaError("validation_failed", "a text of the call is not valid Unicode") from None
        return seq, left

    def _put(self, message: pb.Call, seq: int, call: CallRequest, identity: str, remaining_ms: int) -> None:
        message.seq = seq
        meta = message.meta
        meta.identity = identity
        meta.tenant = call.scope.tenant
        meta.namespace = call.scope.namespace
        if call.traceparent is not None:
            meta.traceparent = call.traceparent
            if call.tracestate is not None:
                meta.tracestate = call.tracestate
        messages.write_request(message.request, call, remaining_ms)

    async def _turn(self, deadline: float | None) -> None:
        """Wait, in order, until the window has room for one more, and take that room."""
        if len(self._turns) >= _MAX_WAITING:
            raise remote_failure("queue_full", "too many calls wait for a connection between planes", "no")
        turn = self._loop.create_future()
        self._turns.append(turn)
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._now())):
                await turn
        except BaseException as exc:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # the room was given just now
                self.unanswered -= 1
                self._next_turn()
            elif turn in self._turns:
                self._turns.remove(turn)
            if isinstance(exc, TimeoutError):
                raise out_of_time("no") from None
            raise

    def _next_turn(self) -> None:
        while self._turns and self.unanswered < self._window:
            turn = self._turns.popleft()
            if not turn.done():
                self.unanswered += 1
                turn.set_result(None)

    def _late(self, seq: int) -> None:
        """The server has not answered within the call's time: it may be stopped, or the network gone."""
        if (future := self._waiting.get(seq)) is not None and not future.done():
            future.set_exception(out_of_time("unknown" if seq <= self._written else "no"))
            self._leave(seq)

    def _leave(self, seq: int) -> None:
        """Nobody waits for this call any more."""
        if self._waiting.pop(seq, None) is not None and self.usable:
            self._outbox.batch(8).cancel.append(seq)

    async def _read(self) -> None:
        while True:
            data = await next_message(self._call)
            if data is None:
                return
            batch = pb.ResultBatch.FromString(data)
            for result in batch.results:
                self.unanswered -= 1
                future = self._waiting.pop(result.seq, None)
                if future is not None and not future.done():
                    future.set_result(result)
            if batch.draining:
                self._finish()
            if self._turns:
                self._next_turn()

    def _finish(self) -> None:
        """The server takes no more: what was not written goes back to its callers, and this side closes."""
        self.usable = False
        self._refuse_unwritten(draining())
        self._outbox.batch(0)  # wakes the writer

    async def _write(self) -> None:
        while True:
            batch = await self._outbox.take()
            if not self.usable:
                await self._call.done_writing()
                return
            if batch.calls:
                self._written = batch.calls[-1].seq
            await self._call.write(batch.SerializeToString())

    def _refuse_unwritten(self, why: NovaError) -> None:
        for seq in [seq for seq in self._waiting if seq > self._written]:
            self._fail(seq, _not_sent(why))
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_exception(_not_sent(why))

    def _fail_all(self) -> None:
        self._refuse_unwritten(unreachable(self._address))
        for seq in list(self._waiting):
            self._fail(seq, lost(self._address))

    def _fail(self, seq: int, why: NovaError) -> None:
        self.unanswered -= 1
        future = self._waiting.pop(seq)
        if not future.done():
            future.set_exception(why)


def _not_sent(why: NovaError) -> RemoteFailure:
    return remote_failure(why.code, why.detail, "no", retry_after_s=why.retry_after_s)
