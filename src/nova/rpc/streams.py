"""``InvokeStream``, both ends: one call whose pieces travel as they come, at the speed of whoever reads them.

gRPC's own flow control carries the back-pressure: a client that does not read lets the server's write wait, which fills what
waits there, which stops the worker.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import grpc

from nova.domain.call import CallRequest, CallResult
from nova.domain.pieces import Item, Printed, Started, streaming
from nova.domain.ports import Streamer
from nova.domain.stream import Piece, PieceKind, Sink
from nova.errors import NovaError
from nova.rpc import messages
from nova.rpc import nova_pb2 as pb
from nova.rpc.failures import RemoteFailure, fill, read, refusal, remote_failure, text
from nova.rpc.transport import Context, next_message

if TYPE_CHECKING:
    RpcCall: TypeAlias = grpc.aio.UnaryStreamCall[bytes, bytes]

_TOGETHER = 256 << 10
"""Bytes of pieces in one message, about."""
_KINDS: dict[str, PieceKind] = {kind: kind for kind in get_args(PieceKind)}


async def serve(
    streamer: Streamer, call: CallRequest, context: Context, finished: Callable[[CallResult], pb.InvokeResponse]
) -> None:
    """Run the call and write what happens; a client that leaves cancels this, and with it the call.

    ``finished`` makes the message of a result, and refuses one that is too large.
    """
    async with streaming(streamer, call) as (pieces, running):
        while items := await pieces.take():
            for event in _events(call, items):
                await context.write(event.SerializeToString())
        last = pb.InvokeEvent()
        try:
            last.done.CopyFrom(finished(running.result()))
        except Exception as exc:
            last = pb.InvokeEvent(error=fill(pb.Failure(), refusal(exc, "call", request_id=call.request_id)))
        await context.write(last.SerializeToString())


def _events(call: CallRequest, items: Sequence[Item]) -> Iterator[pb.InvokeEvent]:
    """What is there, in as few messages as its order and their size allow."""
    together: list[pb.InvokeChunk] = []
    size = 0
    for item in items:
        if isinstance(item, Piece):
            together.append(pb.InvokeChunk(kind=item.kind, data=item.data))
            size += len(item.data)
            if size < _TOGETHER:
                continue
        yield from _chunks(together)
        together, size = [], 0
        if isinstance(item, Printed):
            yield pb.InvokeEvent(log=pb.LogLine(stream=item.stream, text=text(item.text)))
        elif isinstance(item, Started):
            start = pb.InvokeStart(request_id=call.request_id, version=item.version, cold_start=item.cold_start)
            yield pb.InvokeEvent(start=start)
    yield from _chunks(together)


def _chunks(together: Sequence[pb.InvokeChunk]) -> Iterator[pb.InvokeEvent]:
    if len(together) == 1:
        yield pb.InvokeEvent(chunk=together[0])
    elif together:
        yield pb.InvokeEvent(chunks=pb.InvokeChunks(chunks=together))


async def follow(rpc: "RpcCall", sink: Sink, lost: RemoteFailure) -> CallResult:
    """Give ``sink`` what comes, as fast as it takes it. Raises AioRpcError, the call's refusal, or ``lost`` for a stream that
    ends before its call does."""
    room = asyncio.Event()
    sink.on_drained(room.set)
    while (data := await next_message(rpc)) is not None:
        event = pb.InvokeEvent.FromString(data)
        match event.WhichOneof("event"):
            case "start":
                sink.started(event.start.version, event.start.cold_start)
            case "chunk":
                await _give(sink, room, event.chunk)
            case "chunks":
                for chunk in event.chunks.chunks:
                    await _give(sink, room, chunk)
            case "log":
                sink.printed("stderr" if event.log.stream == "stderr" else "stdout", event.log.text)
            case "done":
                return messages.read_response(event.done)
            case "error":
                raise read(event.error)
    raise lost


async def _give(sink: Sink, room: asyncio.Event, chunk: pb.InvokeChunk) -> None:
    room.clear()
    if not sink.piece(_piece(chunk)):
        await room.wait()


def _piece(chunk: pb.InvokeChunk) -> Piece:
    kind = _KINDS.get(chunk.kind)
    if kind is None:
        raise remote_failure(
            "internal", f"a piece of a kind that this process does not know: {chunk.kind[:32]!r}", "yes"
        )
    return Piece(kind, chunk.data)


class Once:
    """Passes on what a sink gets, and knows whether it got anything: such a call cannot be sent again."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.begun = False
        self.on_drained = sink.on_drained

    def started(self, version: int, cold_start: bool) -> None:
        self.begun = True
        self._sink.started(version, cold_start)

    def piece(self, piece: Piece) -> bool:
        self.begun = True
        return self._sink.piece(piece)

    def printed(self, stream: Any, text: str) -> None:
        self.begun = True
        self._sink.printed(stream, text)

    def judge(self, error: NovaError) -> NovaError:
        """The same failure, which says that the call began if it did."""
        if self.begun and isinstance(error, RemoteFailure):
            error.delivered = "yes"
        return error
