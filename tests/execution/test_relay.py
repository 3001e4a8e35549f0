"""A real agent, reached through two relays and one byte stream, is the same to its host as one that is beside it."""

import asyncio
import contextlib
import dataclasses
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nova.agent import relay_codec as codec
from nova.agent.relay_codec import PREAMBLE, PacketDecoder
from nova.execution.channel_control import ControlLost
from nova.execution.relay import relayed
from tests.agent.harness import Guest, guest
from tests.agent.relaying import Through, through_small_buffers, through_socketpair, through_tcp

pytestmark = pytest.mark.anyio

CODE = """
import os, sys, threading, time

def handler(event, context):
    print("for", event if not isinstance(event, str) else len(event))
    if event == "die":
        print("x" * 300000)
        os._exit(3)
    if event == "sleep":
        time.sleep(60)
    if event == "flood":
        for _ in range(40):
            print("y" * 50000)
            print("z" * 50000, file=sys.stderr)
    return event
"""


@pytest.fixture(params=[through_socketpair, through_tcp, through_small_buffers], ids=lambda one: one.__name__)
async def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Guest]:
    async with guest("python", {"main.py": CODE}, tmp_path, through=request.param, concurrency=2) as instance:
        await asyncio.wait_for(instance.init(), 10)
        yield instance


async def test_an_instances_life(loaded: Guest) -> None:
    """Calls, prints, large values both ways, a second worker, a cancelled call, an end."""
    for number in range(20):
        result = await loaded.call(number)
        assert (result.output, result.stdout, result.stderr) == (b"%d" % number, f"for {number}\n", "")
    large = "ä" * 3_000_000
    assert await loaded.value(large) == large
    flood = await loaded.call("flood")
    assert flood.output == b'"flood"'
    assert len(flood.stdout) > 256 << 10
    assert len(flood.stderr) > 256 << 10
    assert (await loaded.call(7)).stdout == "for 7\n"

    sleeping, other = loaded.begin("sleep"), loaded.begin(8)
    assert (await other).output == b"8"
    sleeping.cancel()
    assert (await loaded.call(9, timeout_s=5)).output == b"9"
    assert await loaded.channel.ping(5)

    died = await loaded.call("die")
    assert died.error is not None
    assert died.error.type == "Nova.ExitError"
    assert "exited with code 3" in died.error.message
    assert len(died.stdout) > 256 << 10


@pytest.mark.parametrize("through", [through_socketpair])
async def test_the_end_of_the_agent_is_noticed(through: Through, tmp_path: Path) -> None:
    async with guest("python", {"main.py": CODE}, tmp_path, through=through) as instance:
        await instance.init()
        sleeping = instance.begin("sleep")
        await asyncio.sleep(0)
        instance.process.kill()
        result = await asyncio.wait_for(sleeping, 20)
        assert result.error is not None
        assert result.error.type == "Nova.InstanceLost"
        assert not instance.channel.usable


async def test_an_agent_that_is_stopped_ends_in_order(tmp_path: Path) -> None:
    async with guest("python", {"main.py": CODE}, tmp_path, through=through_socketpair) as instance:
        await instance.init()
        await instance.channel.stop(1000)
        assert await asyncio.to_thread(instance.process.wait, 5) == 0


async def test_an_agent_ends_with_its_host(tmp_path: Path) -> None:
    """AG27."""
    async with guest("python", {"main.py": CODE}, tmp_path, through=through_tcp) as instance:
        await instance.init()
        open_before = len(os.listdir("/proc/self/fd"))
        instance.channel.close()
        assert await asyncio.to_thread(instance.process.wait, 5) == 0
        await _until(lambda: len(os.listdir("/proc/self/fd")) <= open_before - 10)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_every_byte_arrives_once_and_in_order_whatever_the_pace() -> None:
    """Workers' sockets and pipes under random writes, reads, pauses and ends, through a stream that cuts everything."""
    random.seed(17)
    agent, control = socket.socketpair()
    near = await through_small_buffers(control)
    near.setblocking(False)
    with agent, near:
        ends = [await _sent_over(agent, near, number) for number in range(4)]
        flows = [flow for worker, host in ends for flow in _flows(worker, host)]
        async with asyncio.timeout(20):
            await asyncio.gather(*flows)
    for worker, host in ends:
        worker.line.close()
        host.line.close()


@dataclasses.dataclass
class End:
    """One side's descriptors of a worker."""

    line: socket.socket
    print: int


async def _sent_over(agent: socket.socket, near: socket.socket, number: int) -> tuple[End, End]:
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    socket.send_fds(agent, [b"%d" % number], [theirs.fileno(), read])
    theirs.close()
    os.close(read)
    await _readable(near.fileno())
    data, fds, _, _ = socket.recv_fds(near, 1, 2)
    assert (data, len(fds)) == (b"%d" % number, 2)
    line = socket.socket(fileno=fds[0])
    for sock in (ours, line):
        sock.setblocking(False)
    os.set_blocking(write, False)
    return End(ours, write), End(line, fds[1])


def _flows(worker: End, host: End) -> list[Awaitable[None]]:
    there, back, prints = (random.randbytes(random.randint(0, 900_000)) for _ in range(3))
    return [
        _write_all(host.line.fileno(), there, lambda: host.line.shutdown(socket.SHUT_WR)),
        _write_all(worker.line.fileno(), back, lambda: worker.line.shutdown(socket.SHUT_WR)),
        _write_all(worker.print, prints, lambda: os.close(worker.print)),
        _read_all(worker.line.fileno(), there, lambda: None),
        _read_all(host.line.fileno(), back, lambda: None),
        _read_all(host.print, prints, lambda: os.close(host.print)),
    ]


async def _write_all(fd: int, data: bytes, end: Callable[[], None]) -> None:
    while data:
        await _nap()
        try:
            data = data[os.write(fd, data[: random.choice((1, 1000, 100_000))]) :]
        except BlockingIOError:
            await asyncio.sleep(0.001)
    end()


async def _read_all(fd: int, wanted: bytes, end: Callable[[], None]) -> None:
    found = bytearray()
    while True:
        await _nap()
        try:
            data = os.read(fd, random.choice((100, 5000, 1 << 20)))
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        if not data:
            break
        found += data
    assert found == wanted
    end()


async def _nap() -> None:
    if random.random() < 0.01:
        await asyncio.sleep(random.random() / 50)
    else:
        await asyncio.sleep(0)


# -- one relay, and a hand at the other end of its byte stream -----------------------------------------------------


class Hand:
    """Speaks packets. ``near`` is what the daemon got."""

    def __init__(self, near: socket.socket, wire: socket.socket) -> None:
        self.near = near
        self.wire = wire
        self.decoder = PacketDecoder()

    async def send(self, *packets: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            await asyncio.get_running_loop().sock_sendall(self.wire, b"".join(packets))

    async def receive(self) -> list[codec.Packet]:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.wire, 1 << 20), 20)
        return self.decoder.feed(data)

    async def worker(self) -> tuple[socket.socket, int]:
        """A worker's line and stdout, as the daemon gets them."""
        await self.send(
            codec.encode(codec.OPEN, 1, codec.SOCKET),
            codec.encode(codec.OPEN, 2, codec.PIPE),
            codec.encode(codec.DATA, 0, b"hello"),
        )
        await _readable(self.near.fileno())
        data, fds, _, _ = socket.recv_fds(self.near, 100, 3)
        assert (data, len(fds)) == (b"hello", 2)
        line = socket.socket(fileno=fds[0])
        return line, fds[1]


async def _readable(fd: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), 20)
    finally:
        loop.remove_reader(fd)


@pytest.fixture
async def hand() -> AsyncIterator[Hand]:
    outside, wire = socket.socketpair()
    wire.setblocking(False)
    wire.sendall(b"left from before" + PREAMBLE)
    near = await relayed(outside)
    assert wire.recv(len(PREAMBLE)) == PREAMBLE
    near.setblocking(False)
    with near, wire:
        yield Hand(near, wire)
    await asyncio.sleep(0)


async def test_prints_come_before_the_answer_that_followed_them(hand: Hand) -> None:
    """Also where the pipe cannot take them at once."""
    line, stdout = await hand.worker()
    with line:
        size = 200 << 10
        prints = [codec.encode(codec.DATA, 2, b"p" * (50 << 10))] * 4
        await hand.send(*prints, codec.encode(codec.DATA, 1, b"answer"), codec.encode(codec.END, 1))
        await _readable(stdout)
        while size:
            await _readable(stdout)
            if size > 64 << 10:
                with pytest.raises(BlockingIOError):
                    line.recv(100)
            size -= len(os.read(stdout, 1 << 16))
        await _readable(line.fileno())
        assert line.recv(100) == b"answer"
        await _readable(line.fileno())
        assert line.recv(100) == b""
    os.close(stdout)


async def test_a_slow_reader_stops_its_own_writer_and_nobody_else(hand: Hand) -> None:
    line, stdout = await hand.worker()
    with line:
        line.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):  # the hand gives no credit
            while sent < 10 << 20:
                sent += line.send(b"x" * 10000)
                await asyncio.sleep(0)
        arrived = 0
        while arrived < codec.WINDOW:
            arrived += sum(len(one.data) for one in await hand.receive() if one.kind == codec.DATA)
        assert arrived == codec.WINDOW < sent < 1 << 20
        hand.near.send(b"ping")
        (packet,) = await hand.receive()
        assert (packet.kind, packet.stream, packet.data) == (codec.DATA, 0, b"ping")
        await hand.send(codec.encode_credit(1, 1000))
        (packet,) = await hand.receive()
        assert (packet.stream, len(packet.data)) == (1, 1000)
    os.close(stdout)


async def test_half_and_whole_ends_travel(hand: Hand) -> None:
    line, stdout = await hand.worker()
    with line:
        line.shutdown(socket.SHUT_WR)
        (packet,) = await hand.receive()
        assert (packet.kind, packet.stream) == (codec.END, 1)
        await hand.send(codec.encode(codec.DATA, 1, b"still"))
        await _readable(line.fileno())
        assert line.recv(100) == b"still"
    await hand.send(codec.encode(codec.DATA, 1, b"nobody"))
    (packet,) = await hand.receive()
    assert (packet.kind, packet.stream) == (codec.STOP, 1)
    os.close(stdout)
    await hand.send(codec.encode(codec.DATA, 2, b"nobody"))
    (packet,) = await hand.receive()
    assert (packet.kind, packet.stream) == (codec.STOP, 2)


@pytest.mark.parametrize(
    "data",
    [
        codec.encode(codec.DATA, 9, b"x"),
        codec.encode(codec.OPEN, 5, codec.PIPE),
        codec.encode_credit(0, 1),
        codec.encode(codec.DATA, 0, b"x" * codec.MAX_DATA) * 12,
        codec.encode(codec.OPEN, 1, codec.SOCKET) + codec.encode(codec.OPEN, 1, codec.SOCKET),
        b"".join(codec.encode(codec.OPEN, number, codec.PIPE) for number in range(1, 40)),
        struct.pack(">BII", 77, 0, 0),
    ],
)
async def test_a_peer_that_breaks_the_rules_costs_its_own_relay(data: bytes, hand: Hand) -> None:
    """AG17: more than its credit, streams out of order, packets that cannot be."""
    await hand.send(data)
    await _ends(hand)


async def test_random_packets_cost_their_own_relay(hand: Hand) -> None:
    """AG17."""
    random.seed(29)
    data = b""
    for _ in range(300):
        kind = random.choice([codec.DATA, codec.OPEN, codec.END, codec.STOP])
        body = {codec.DATA: b"d", codec.OPEN: b"s"}.get(kind, b"")
        data += codec.encode(kind, random.randint(0, 5), body)
    await hand.send(data)
    await _ends(hand)


async def _ends(hand: Hand) -> None:
    """The daemon sees the end of the control socket, after what had come before."""
    async with asyncio.timeout(20):
        while True:
            await _readable(hand.near.fileno())
            try:
                data, fds, _, _ = socket.recv_fds(hand.near, 1 << 20, 40)
            except ConnectionError:
                return
            for fd in fds:
                os.close(fd)
            if not data:
                return


@pytest.mark.parametrize("answer", [b"", b"x" * 70000, b"nova-relay-1"])
async def test_what_is_no_relay_is_refused(answer: bytes) -> None:
    outside, wire = socket.socketpair()
    wire.sendall(answer)
    wire.shutdown(socket.SHUT_WR)
    with wire, pytest.raises(ControlLost):
        await asyncio.wait_for(relayed(outside), 20)
