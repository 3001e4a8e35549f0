"""Comets that stop, die or are flooded, as real processes."""

import asyncio
import signal

import grpc
import pytest

from nova.errors import NovaError
from nova.rpc import nova_pb2 as pb
from nova.rpc import transport
from nova.rpc.failures import RemoteFailure
from tests.rpc.far import far
from tests.rpc.planes import connected, make_call, metadata, raw, until

pytestmark = pytest.mark.anyio


async def test_a_killed_comet_fails_what_it_had_and_nothing_else() -> None:
    with far() as first:
        async with connected(first.port) as comet:
            running = [asyncio.create_task(comet.invoke(make_call(b"[60, 1]"))) for _ in range(20)]
            assert (await comet.invoke(make_call(b"[0, 1]"))).output == b'"o"'
            reports = comet.reports()
            assert (await anext(reports)).node_id == "far"
            first.send(signal.SIGKILL)
            for task in running:
                with pytest.raises(RemoteFailure) as caught:
                    await asyncio.wait_for(task, 20)
                assert (caught.value.code, caught.value.delivered) == ("instance_lost", "unknown")
            with pytest.raises(RemoteFailure):
                await asyncio.wait_for(anext(reports), 20)
            with pytest.raises(RemoteFailure) as caught:
                await comet.invoke(make_call(b"[0, 1]"))
            assert (caught.value.code, caught.value.delivered) == ("dependency_unavailable", "no")
            with far(first.port):
                await until(lambda: comet.usable)
                assert (await comet.invoke(make_call(b"[0, 1]"))).output == b'"o"'


async def test_a_stopped_comet_costs_its_calls_their_deadline_and_is_taken_up_again() -> None:
    with far() as stopped, far() as fine:
        async with connected(stopped.port) as comet, connected(fine.port) as other:
            await comet.invoke(make_call(b"[0, 1]"))
            stopped.send(signal.SIGSTOP)
            task = asyncio.create_task(comet.invoke(make_call(b"[0, 1]", timeout_ms=300)))
            assert (await other.invoke(make_call(b"[0, 1]"))).output == b'"o"'
            with pytest.raises(RemoteFailure) as caught:
                await asyncio.wait_for(task, 20)
            assert (caught.value.code, caught.value.delivered) == ("timeout", "unknown")
            stopped.send(signal.SIGCONT)
            assert (await asyncio.wait_for(comet.invoke(make_call(b"[0, 2]")), 20)).output == b'"oo"'


async def test_a_comet_that_stays_stopped_is_given_up_by_calls_without_a_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "_PING_MS", 500)
    monkeypatch.setattr(transport, "_PING_TIMEOUT_MS", 500)
    with far() as stopped:
        async with connected(stopped.port) as comet:
            await comet.invoke(make_call(b"[0, 1]"))
            stopped.send(signal.SIGSTOP)
            with pytest.raises(RemoteFailure) as caught:
                await asyncio.wait_for(comet.invoke(make_call(b"[0, 1]")), 15)
            assert (caught.value.code, caught.value.delivered) == ("instance_lost", "unknown")
            stopped.send(signal.SIGCONT)


async def test_a_client_that_never_reads_its_results_does_not_fill_the_server() -> None:
    with far() as server:
        async with raw(server.port) as client:
            stream = client.method("stream_stream", "Calls")(metadata=metadata())
            assert pb.ResultBatch.FromString(await stream.read()).window == 1024
            before = server.memory_mb
            identity = dict(metadata())["x-nova-identity"]
            sent = 0
            try:
                async with asyncio.timeout(3):
                    for number in range(1000):  # each asks for a megabyte
                        call = pb.Call(seq=number + 1, meta=pb.CallMeta(identity=identity))
                        call.request.function = "hello"
                        call.request.payload = b"[0, 1000000]"
                        call.request.client_request_id = "x" * 100
                        await stream.write(pb.CallBatch(calls=[call]).SerializeToString())
                        sent += 1
                        await asyncio.sleep(0.001)
            except TimeoutError:
                pass
            assert sent > 30
            grown = server.memory_mb - before
            assert grown < 200, f"the server grew by {grown:.0f} MB for {sent} MB of results"
            async with connected(server.port) as other:
                assert (await other.invoke(make_call(b"[0, 1]"))).output == b'"o"', "others are served"
            stream.cancel()
            await until(lambda: server.memory_mb - before < grown + 1)


async def test_many_connections_that_say_nothing_harm_nobody() -> None:
    with far() as server:
        streams = []
        async with raw(server.port) as client:
            for _ in range(300):
                streams.append(client.method("stream_stream", "Calls")(metadata=metadata()))
            assert all([await stream.read() is not grpc.aio.EOF for stream in streams])
            async with connected(server.port) as comet:
                assert (await comet.invoke(make_call(b"[0, 1]"))).output == b'"o"'
            for stream in streams:
                stream.cancel()


async def test_a_call_that_is_cancelled_here_ends_there() -> None:
    with far() as server:
        async with connected(server.port) as comet:
            task = asyncio.create_task(comet.invoke(make_call(b"[60, 1]")))
            await asyncio.sleep(0)
            await comet.invoke(make_call(b"[0, 1]"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: comet.unanswered == 0)


async def test_closing_the_connection_ends_its_calls() -> None:
    with far() as server:
        async with connected(server.port) as comet:
            task = asyncio.create_task(comet.invoke(make_call(b"[60, 1]")))
            await comet.invoke(make_call(b"[0, 1]"))
        with pytest.raises(NovaError) as caught:
            await asyncio.wait_for(task, 20)
        assert caught.value.code == "instance_lost"
