"""Reaching a port inside a machine: Firecracker offers its vsock as a unix socket with a line of greeting."""

import asyncio
import socket
from pathlib import Path
from typing import Final

from tenacity import AsyncRetrying, retry_if_exception_type, wait_fixed

_PAUSE_S: Final = 0.005
_GREETING_MOST: Final = 64


async def dial(path: Path, port: int) -> socket.socket:
    """A connection to ``port`` inside. Raises ConnectionError while nobody listens there, OSError."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(path))
        await loop.sock_sendall(sock, f"CONNECT {port}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            # byte by byte: what follows the line is already the agent's
            byte = await loop.sock_recv(sock, 1)
            if not byte or len(answer) > _GREETING_MOST:
                raise ConnectionRefusedError(f"nobody listens on port {port} of the machine")
            answer += byte
        if not answer.startswith(b"OK "):
            raise ConnectionRefusedError(f"firecracker answered {answer!r}")
    except BaseException:
        sock.close()
        raise
    return sock


async def await_port(path: Path, port: int) -> socket.socket:
    """:func:`dial` until somebody listens; the caller limits the time.

    A machine whose kernel does not know its vsock yet makes the connection wait, so refusals are only those of the moment
    between that and the agent's start.
    """
    retrying = AsyncRetrying(retry=retry_if_exception_type(ConnectionError), wait=wait_fixed(_PAUSE_S))
    return await retrying(dial, path, port)
