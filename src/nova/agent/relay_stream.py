"""One descriptor of a relay: what came for it, what was read of it, and how each direction ends."""

import contextlib
import os
import select
import socket
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from nova.agent.relay_codec import MAX_DATA, WINDOW

_MAX_FDS: Final = 16


@dataclass(slots=True, eq=False)
class Piece:
    """Bytes of a stream. ``fds`` go with the first of them; whoever has the piece owns them."""

    data: bytes
    fds: list[int] = field(default_factory=list)

    def drop_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


@dataclass(slots=True, eq=False)
class Stream:
    """``reads`` and ``writes``: that direction of the descriptor is still open."""

    number: int
    fd: int
    is_socket: bool
    reads: bool
    writes: bool
    pipes: "tuple[Stream, ...]" = ()
    """of a socket: the pipes that came together with it"""
    credit: int = WINDOW
    """bytes that may still be sent to the peer"""
    owed: int = 0
    """bytes that the descriptor took, for which the peer has not got credit again"""
    pending: deque[Piece] = field(default_factory=deque)
    size: int = 0
    """bytes in ``pending``"""
    ending: bool = False
    """the peer sends nothing more: when ``pending`` is written the descriptor gets its end of file"""
    held: Piece | None = None
    """was read, and goes on when the streams in ``waits`` have given what lay in them"""
    waits: "dict[Stream, int]" = field(default_factory=dict)
    """and how many bytes each may give until it is waited for no longer"""
    pumping: bool = False
    """is being read just now"""

    def read(self, *, with_fds: bool) -> Piece:
        """What lies in the descriptor, at most what there is credit for; no bytes: the end. Raises BlockingIOError."""
        size = min(MAX_DATA, self.credit)
        try:
            return self._receive(size) if with_fds else Piece(os.read(self.fd, size))
        except BlockingIOError:
            raise
        except OSError:
            return Piece(b"")

    def _receive(self, size: int) -> Piece:
        fds = array("i")
        space = socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
        with self._socket() as sock:
            data, ancillary, _, _ = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, received in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(received[: len(received) - len(received) % fds.itemsize])
        return Piece(data, list(fds))

    def put(self, piece: Piece) -> None:
        self.pending.append(piece)
        self.size += len(piece.data)

    def write(self) -> int:
        """Write some of ``pending``; how many bytes. Raises OSError, BlockingIOError among them."""
        piece = self.pending[0]
        if piece.fds:
            with self._socket() as sock:
                sent = socket.send_fds(sock, [piece.data], piece.fds)
            piece.drop_fds()
        else:
            sent = os.write(self.fd, piece.data)
        piece.data = piece.data[sent:]
        self.size -= sent
        if not piece.data:
            self.pending.popleft()
        return sent

    def peer_gone(self) -> bool:
        """The other end is closed by everyone who had it."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    def stop_reading(self) -> None:
        self.reads = False
        if self.held is not None:
            self.held.drop_fds()
        self.held, self.waits = None, {}
        if self.is_socket:
            self._shut(socket.SHUT_RD)

    def stop_writing(self) -> None:
        self.writes = False
        self.forget()
        if self.is_socket:
            self._shut(socket.SHUT_WR)

    def forget(self) -> None:
        """Drop what is under way in either direction."""
        for piece in self.pending:
            piece.drop_fds()
        self.pending.clear()
        self.size = 0
        if not self.reads and self.held is not None:
            self.held.drop_fds()
            self.held, self.waits = None, {}

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError), self._socket() as sock:
            sock.shutdown(how)

    @contextlib.contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        """The descriptor as a socket object, which does not close it."""
        sock = socket.socket(fileno=self.fd)
        try:
            yield sock
        finally:
            sock.detach()


def group(streams: Sequence[Stream]) -> None:
    """They belong together: what comes through the pipes comes before what comes through the sockets."""
    pipes = tuple(stream for stream in streams if not stream.is_socket)
    for stream in streams:
        if stream.is_socket:
            stream.pipes = pipes
