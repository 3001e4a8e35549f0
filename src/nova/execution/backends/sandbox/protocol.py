"""Messages between the daemon and its launcher: one JSON object per datagram, descriptors beside it.

Requests carry a ``seq`` that their reply repeats; what the launcher tells unasked carries ``event`` instead.
Guest-side code: standard library only.
"""

import json
import os
import socket
from array import array
from dataclasses import dataclass, field
from typing import Any

MAX_MESSAGE = 512 * 1024
MAX_DESCRIPTORS = 8


_buffer = bytearray(MAX_MESSAGE)
"""One for all: a new one of this size would be mapped and unmapped for each message."""


@dataclass(slots=True)
class Message:
    """``fds`` belong to whoever received the message."""

    body: dict[str, Any]
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def message_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets that keep message boundaries and hold one message of the largest size."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE)
    return pair


def send(sock: socket.socket, body: dict[str, Any], fds: list[int] | None = None) -> None:
    """Raises ValueError for a message that is too large and OSError when the other end is gone or does not read."""
    data = json.dumps(body, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE:
        raise ValueError(f"message of {len(data)} bytes; at most {MAX_MESSAGE}")
    socket.send_fds(sock, [data], fds or [])


def receive(sock: socket.socket) -> Message | None:
    """The next message, None at the end. Descriptors arrive close-on-exec."""
    # Not socket.recv_fds: in Python 3.11 it drops the flags, and the descriptors would be inherited over exec.
    fds = array("i")
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * fds.itemsize)
    size, ancillary, _flags, _address = sock.recvmsg_into([_buffer], space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, received in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(received[: len(received) - len(received) % fds.itemsize])
    if not size:
        return None
    return Message(json.loads(_buffer[:size]), list(fds))
