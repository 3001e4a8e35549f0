"""A relay in the place where an instance's first process would have it: between an agent and a byte stream."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from nova.agent.relay import Relay
from nova.agent.relay_codec import PREAMBLE, PreambleFinder
from nova.execution.relay import LoopReactor, relayed


async def serve_inside(stream: socket.socket, control: socket.socket) -> None:
    """Wait for the other relay on ``stream``, then carry ``control`` through it."""
    loop = asyncio.get_running_loop()
    stream.setblocking(False)
    finder = PreambleFinder(0)
    while (rest := finder.feed(await loop.sock_recv(stream, 1 << 16))) is None:
        pass
    await loop.sock_sendall(stream, PREAMBLE)
    Relay(LoopReactor(loop), stream.detach(), control, lambda: None).start(rest)


async def through_socketpair(control: socket.socket) -> socket.socket:
    return await _through(*socket.socketpair(), control)


async def through_tcp(control: socket.socket) -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        outside = socket.create_connection(server.getsockname())
        inside, _ = server.accept()
    inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return await _through(outside, inside, control)


async def through_small_buffers(control: socket.socket) -> socket.socket:
    """Every read and write is cut somewhere."""
    outside, inside = socket.socketpair()
    for sock in (outside, inside):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    return await _through(outside, inside, control)


async def _through(outside: socket.socket, inside: socket.socket, control: socket.socket) -> socket.socket:
    serving = asyncio.create_task(serve_inside(inside, control))
    near = await relayed(outside)
    await serving
    return near


Through = Callable[[socket.socket], Awaitable[socket.socket]]
