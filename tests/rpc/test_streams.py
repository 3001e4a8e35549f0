"""Calls that answer piece by piece, from one process to another: order, pace, and how they end on both sides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from nova.domain.call import CallRequest
from nova.domain.pieces import Item, Pieces, Printed, Started, streaming
from nova.domain.stream import Piece
from nova.errors import FunctionError, NovaError
from nova.rpc import nova_pb2 as pb
from nova.rpc.failures import TRAILER, RemoteFailure
from nova.rpc.remote import CometConnection
from tests.gateway.fakes import FakeInvoker
from tests.rpc.planes import connected, make_call, metadata, raw, server_of, serving, until

pytestmark = pytest.mark.anyio


class Gated(FakeInvoker):
    """Gives one piece, then waits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.script = self._gated

    async def _gated(self, _call: CallRequest) -> AsyncIterator[Piece | Printed]:
        yield Piece("text", b'"one"')
        yield Printed("stderr", "half a l\udc80ne")
        await self.gate.wait()
        yield Piece("b64", b'"AAA="')


@asynccontextmanager
async def connected_to(invoker: FakeInvoker) -> AsyncIterator[tuple[Callable[[], Awaitable[None]], CometConnection]]:
    """A connection, and what ends the server under it without waiting for calls."""
    server = server_of(invoker=invoker, drain_s=0.1)
    await server.start()
    async with connected(server.port) as comet:
        try:
            yield server.close, comet
        finally:
            await server.close()


async def everything(pieces: Pieces) -> list[Item]:
    found: list[Item] = []
    while items := await pieces.take():
        found += items
    return found


async def test_pieces_prints_and_the_result_arrive_in_order_as_they_come() -> None:
    invoker = Gated()
    invoker.output = b'{"rest":1}'
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        call = make_call(b"[1]", chain=("outer", "middle"), caller="function:middle", trigger="function")
        call.headers = {b"x-side": b"left:right", b"x-api-key": b"secret"}
        async with streaming(comet, call) as (pieces, running), asyncio.timeout(10):
            early: list[Item] = []
            while len(early) < 3:
                early += await pieces.take()
            assert early == [Started(7, cold_start=False), Piece("text", b'"one"'), Printed("stderr", "half a l?ne")]
            invoker.gate.set()
            assert await everything(pieces) == [Piece("b64", b'"AAA="')]
            result = running.result()
    assert (result.output, result.version, result.phases.handler_us) == (b'{"rest":1}', 7, 400)
    there = invoker.streamed[0]
    assert (there.payload, there.chain, there.caller, there.trigger) == (
        b"[1]",
        ("outer", "middle"),
        "function:middle",
        "function",
    )
    assert dict(there.headers or {}) == {
        b"x-side": b"left:right"
    }  # an alias may route by them; credentials stay at the door


async def test_failures_keep_what_they_are_before_and_after_the_first_piece() -> None:
    invoker = FakeInvoker()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        invoker.refusal = NovaError("queue_full", "no room", retry_after_s=2)
        with pytest.raises(RemoteFailure) as refused:
            await comet.stream(make_call(), Pieces())
        assert (refused.value.code, refused.value.delivered, refused.value.retry_after_s) == ("queue_full", "no", 2)

        async def one(_call: CallRequest) -> AsyncIterator[Piece | Printed]:
            yield Piece("json", b"1")

        invoker.script, invoker.refusal = one, NovaError("timeout", "too slow", extra={"version": 7})
        pieces = Pieces()
        with pytest.raises(RemoteFailure) as late:
            await comet.stream(make_call(), pieces)
        assert (late.value.code, late.value.delivered) == ("timeout", "yes")
        pieces.end()
        assert Piece("json", b"1") in await everything(pieces)

        invoker.refusal, invoker.error = None, FunctionError("ValueError", "no", ("line 1",))
        assert (await comet.stream(make_call(), Pieces())).error == FunctionError("ValueError", "no", ("line 1",))


async def test_a_reader_who_stops_stops_the_handler_and_loses_nothing() -> None:
    invoker = FakeInvoker()
    total, piece = 256, b'"%s"' % (b"x" * (64 << 10))

    async def many(_call: CallRequest) -> AsyncIterator[Piece | Printed]:
        for _ in range(total):
            yield Piece("text", piece)

    invoker.script = many
    async with (
        serving(invoker=invoker) as server,
        connected(server.port) as comet,
        asyncio.timeout(30),
        streaming(comet, make_call()) as (pieces, running),
    ):
        given = -1
        while given != invoker.given or not given:  # until everything on the way is full
            given = invoker.given
            await asyncio.sleep(0.2)
        assert 0 < given < total / 4
        found = [item for item in await everything(pieces) if isinstance(item, Piece)]
        assert running.result().version == 7
    assert (len(found), {item.data for item in found}) == (total, {piece})


async def test_small_pieces_travel_together_and_in_order() -> None:
    invoker = FakeInvoker()

    async def many(_call: CallRequest) -> AsyncIterator[Piece | Printed]:
        for number in range(3000):
            yield Printed("stdout", str(number)) if number % 1000 == 999 else Piece("json", b"%d" % number)

    invoker.script = many
    async with serving(invoker=invoker) as server, raw(server.port) as client, connected(server.port) as comet:
        request = pb.InvokeRequest(function="hello").SerializeToString()
        stream = client.method("unary_stream", "InvokeStream")(request, metadata=metadata())
        assert len([data async for data in stream]) < 300
        async with streaming(comet, make_call()) as (pieces, _), asyncio.timeout(20):
            found = [item.data if isinstance(item, Piece) else item for item in await everything(pieces)][1:]
    assert found == [Printed("stdout", str(n)) if n % 1000 == 999 else b"%d" % n for n in range(3000)]


async def test_whoever_leaves_ends_the_call_at_once() -> None:
    invoker = Gated()
    async with serving(invoker=invoker) as server, connected(server.port) as comet:
        async with streaming(comet, make_call()) as (pieces, _):
            await pieces.take()
        await asyncio.wait_for(invoker.cancelled.wait(), 20)


async def test_the_callers_time_and_a_server_that_goes_end_a_stream() -> None:
    invoker = Gated()
    async with connected_to(invoker) as (server_closed, comet):
        with pytest.raises(RemoteFailure) as late:
            await comet.stream(make_call(timeout_ms=200), Pieces())
        assert late.value.code == "timeout"
        assert invoker.streamed[0].timeout_ms is not None
        assert 0 < invoker.streamed[0].timeout_ms <= 200
        await asyncio.wait_for(invoker.cancelled.wait(), 20)
        running = asyncio.ensure_future(comet.stream(make_call(), Pieces()))
        await until(lambda: len(invoker.streamed) == 2)
        await server_closed()
        with pytest.raises(RemoteFailure) as broken:
            await running
        assert broken.value.code in ("instance_lost", "cancelled", "draining")
        with pytest.raises(RemoteFailure) as gone:
            await comet.stream(make_call(), Pieces())
        assert (gone.value.code, gone.value.delivered) == ("dependency_unavailable", "no")


async def test_a_client_of_another_kind_sees_the_events() -> None:
    invoker = Gated()
    invoker.gate.set()
    async with serving(invoker=invoker) as server, raw(server.port) as client:

        async def events(message: pb.InvokeRequest) -> list[pb.InvokeEvent]:
            stream = client.method("unary_stream", "InvokeStream")(message.SerializeToString(), metadata=metadata())
            return [pb.InvokeEvent.FromString(data) async for data in stream]

        start, first, log, second, done = await events(pb.InvokeRequest(function="hello", payload=b"7"))
        assert (start.start.request_id, start.start.version) == (invoker.calls[0].request_id, 7)
        assert (first.chunk.kind, first.chunk.data) == ("text", b'"one"')
        assert (log.log.stream, second.chunk.kind, done.done.output) == ("stderr", "b64", b"7")
        for message, code in (
            (pb.InvokeRequest(function="hello", chain=["no/name"]), "validation_failed"),
            (pb.InvokeRequest(function="hello", chain=["f"] * 40), "validation_failed"),
            (pb.InvokeRequest(function="no/name"), "not_found"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await events(message)
            trailers = dict(caught.value.trailing_metadata() or ())
            assert pb.Failure.FromString(trailers[TRAILER]).code == code
