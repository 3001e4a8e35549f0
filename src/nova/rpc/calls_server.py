"""The server's end of a Calls stream: every call a task of its own, results in batches, in whatever order they come."""

import asyncio
from collections.abc import Callable

import structlog
from google.protobuf.message import DecodeError

from nova.domain.call import CallResult
from nova.domain.ports import Invoker
from nova.errors import NovaError, draining, invalid
from nova.rpc import messages
from nova.rpc import nova_pb2 as pb
from nova.rpc.batches import Outbox
from nova.rpc.failures import abort, fill, refusal, remote_failure
from nova.rpc.identity import agreed
from nova.rpc.transport import Context, next_message
from nova.security.assertion import Assertions

log = structlog.get_logger(__name__)
WINDOW = 1024
_OVERHEAD = 256
"""Bytes of a result beside its output, about."""
PAUSE_BYTES = 32 << 20
"""While more than this waits for a client to read, no further calls are taken from it."""
STOP_BYTES = 256 << 20
"""A client that leaves more than this unread is cut off."""
STALL_S = 30.0
"""So is one that reads nothing at all for so long."""
_CANCELLED = "the caller went away"


class ServedCalls:
    """One stream. :meth:`run` until the client closes its side and everything is answered."""

    def __init__(
        self, context: Context, invoker: Invoker, assertions: Assertions, now: Callable[[], float], limit: int
    ) -> None:
        self._context = context
        self._invoker = invoker
        self._assertions = assertions
        self._now = now
        self._limit = limit
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._outbox: Outbox[pb.ResultBatch] = Outbox(pb.ResultBatch, lambda: self._unwritten)
        self._unwritten = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()
        self._unread: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._draining = False
        self._ended = False

    def drain(self) -> None:
        """Tell the client to send no more; what it sends all the same is refused."""
        if not self._draining:
            self._draining = True
            self._outbox.batch(0).draining = True

    async def run(self) -> None:
        """Serve. Aborts the RPC on what is no batch; ends with the calls still running when the client is gone."""
        self._outbox.batch(0).window = WINDOW
        writer = asyncio.ensure_future(self._write())
        reader = asyncio.ensure_future(self._read_and_settle())
        try:
            done, _ = await asyncio.wait({writer, reader, self._unread}, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        except NovaError as exc:
            await abort(self._context, exc)
        finally:
            self._ended = True
            running = (reader, writer, *self._tasks.values())
            for task in running:
                task.cancel()
            self._unread.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _read_and_settle(self) -> None:
        await self._read()
        await self._idle.wait()

    async def _read(self) -> None:
        while True:
            data = await next_message(self._context)
            if data is None:
                return
            try:
                batch = pb.CallBatch.FromString(data)
            except DecodeError:
                raise invalid("CallBatch", "the message cannot be read") from None
            left = frozenset(batch.cancel)
            for call in batch.calls:
                self._begin(call, call.seq in left)
            for seq in left:
                if (task := self._tasks.get(seq)) is not None:
                    task.cancel()
            if self._outbox.backlog > PAUSE_BYTES:
                self._room.clear()
                await self._room.wait()

    def _begin(self, call: pb.Call, left: bool) -> None:
        seq = call.seq
        if seq in self._tasks:
            raise invalid("seq", "the number of a call is used twice")
        self._unwritten += 1
        self._idle.clear()
        if left:  # a task that is cancelled before its first step would never answer
            self._refuse(seq, remote_failure("cancelled", _CANCELLED, "no"))
        elif self._draining:
            self._refuse(seq, draining())
        elif self._unwritten > WINDOW:
            self._refuse(seq, NovaError("queue_full", f"more than {WINDOW} calls are unanswered on this connection"))
        else:
            self._tasks[seq] = asyncio.get_running_loop().create_task(self._serve(seq, call))

    async def _serve(self, seq: int, message: pb.Call) -> None:
        try:
            meta = message.meta
            caller, scope = agreed(self._assertions, meta.identity, meta.tenant, meta.namespace)
            call = messages.read_request(
                message.request, caller.identity, scope, caller.address, now=self._now(), limit=self._limit
            )
            messages.read_trace(call, meta.traceparent, meta.tracestate)
            result = await self._invoker.invoke(call)
        except asyncio.CancelledError:
            if not self._ended:
                self._refuse(seq, remote_failure("cancelled", _CANCELLED, "unknown"))
        except Exception as exc:
            self._refuse(seq, refusal(exc, "call", request_id=message.request.request_id))
        else:
            self._answer(seq, result)
        finally:
            del self._tasks[seq]

    def _answer(self, seq: int, result: CallResult) -> None:
        size = len(result.output or b"") + len(result.stdout) + len(result.stderr) + _OVERHEAD
        if size > self._limit:
            detail = f"the output is larger than a message between planes: {self._limit} bytes"
            self._refuse(seq, remote_failure("payload_too_large", detail, "yes"))
            return
        item = self._outbox.batch(size).results.add(seq=seq)
        messages.write_response(item.ok, result)
        if self._outbox.backlog > STOP_BYTES and not self._unread.done():
            self._unread.set_exception(_not_read())

    def _refuse(self, seq: int, error: NovaError) -> None:
        fill(self._outbox.batch(_OVERHEAD).results.add(seq=seq).failure, error)

    async def _write(self) -> None:
        while True:
            batch = await self._outbox.take()
            data = batch.SerializeToString()
            try:
                async with asyncio.timeout(STALL_S):
                    await self._context.write(data)
            except TimeoutError:
                raise _not_read() from None
            self._unwritten -= len(batch.results)
            if not self._unwritten and self._outbox.empty:
                self._idle.set()
            if self._outbox.backlog < PAUSE_BYTES:
                self._room.set()


def _not_read() -> NovaError:
    return NovaError("queue_full", "the client does not read its results")
