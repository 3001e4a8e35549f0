"""The host's end of the agent connection: frames out, answers back, and the descriptors that come with them."""

import asyncio
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from nova.agent import frames
from nova.agent.frames import Frame, FrameDecoder, FrameError

_READ: Final = 1 << 16
_MAX_FDS: Final = 3
_MAX_WAITING_FDS: Final = 64
"""Descriptors that came and that no frame has announced. A guest that is not to be trusted could send them without end."""


class ControlLost(Exception):
    """The connection ended, or the agent broke the protocol."""


class ControlConnection:
    """Requests by id on one stream socket. What arrives unasked goes to ``on_frame``; the end is told once by ``on_lost``."""

    def __init__(
        self, sock: socket.socket, *, on_frame: Callable[[Frame], None], on_lost: Callable[[str], None]
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder()
        self._next_id = 1
        self._answers: dict[int, asyncio.Future[Frame]] = {}
        self._outgoing = bytearray()
        self._fds: deque[int] = deque()
        self._fds_of: dict[int, list[int]] = {}
        self._closed = False
        self._loop.add_reader(self._fd, self._on_readable)

    def request(self, kind: int, head: Mapping[str, Any], payload: bytes = b"") -> asyncio.Future[Frame]:
        """Send a frame; the future ends with its answer, or with :class:`ControlLost`."""
        future: asyncio.Future[Frame] = self._loop.create_future()
        if self._closed:
            future.set_exception(ControlLost("the connection is closed"))
            return future
        number, self._next_id = self._next_id, self._next_id + 2
        self._expect(number, future)
        self._outgoing += frames.encode(kind, number, head, payload)
        self._flush()
        return future

    def _expect(self, number: int, future: asyncio.Future[Frame]) -> None:
        self._answers[number] = future
        future.add_done_callback(lambda _done: self._answers.pop(number, None))

    def greeting(self) -> asyncio.Future[Frame]:
        """What an agent says first that need not be greeted. Called instead of the first request."""
        future: asyncio.Future[Frame] = self._loop.create_future()
        self._next_id = frames.PING_ID + 2
        self._expect(0, future)
        return future

    def ping(self) -> asyncio.Future[Frame]:
        """A ping to such an agent."""
        future: asyncio.Future[Frame] = self._loop.create_future()
        if self._closed:
            future.set_exception(ControlLost("the connection is closed"))
            return future
        self._expect(frames.PING_ID, future)
        self._outgoing += frames.QUIET_PING
        self._flush()
        return future

    def answer(self, kind: int, frame_id: int, head: Mapping[str, Any], payload: bytes = b"") -> None:
        """Answer what the agent asked; nothing happens when it has gone. Raises FrameError ``too_large``."""
        if not self._closed:
            self._outgoing += frames.encode(kind, frame_id, head, payload)
            self._flush()

    def take_fds(self, answer: Frame) -> tuple[int, int, int]:
        """The descriptors that came with an answer; the caller owns them. Raises ControlLost when they did not come."""
        fds = self._fds_of.pop(answer.id, [])
        if len(fds) != _MAX_FDS:
            for fd in fds:
                os.close(fd)
            raise ControlLost("the agent did not send the descriptors it announced")
        line, stdout, stderr = fds
        return line, stdout, stderr

    def close(self, reason: str = "the connection was closed") -> None:
        """Idempotent; requests without an answer end as :class:`ControlLost`."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        for fds in (self._fds, *self._fds_of.values()):
            for fd in fds:
                os.close(fd)
        self._fds.clear()
        self._fds_of.clear()
        for future in list(self._answers.values()):
            if not future.done():
                future.set_exception(ControlLost(reason))

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self.close(reason)
            self._on_lost(reason)

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            # Later, not now: the caller of request() still has to get its future.
            self._loop.call_soon(self._lose, f"the agent is gone: {error.strerror}")
            self._outgoing.clear()
            return
        del self._outgoing[:sent]
        if self._outgoing:
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._flush()

    def _on_readable(self) -> None:
        try:
            data, fds = _receive(self._sock)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"the agent is gone: {error.strerror}")
            return
        self._fds.extend(fds)
        if not data:
            self._lose("the agent is gone")
            return
        if len(self._fds) > _MAX_WAITING_FDS:
            self._lose("the agent broke the protocol: it sent descriptors that it did not announce")
            return
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
        except FrameError as error:
            self._lose(f"the agent broke the protocol: {error}")

    def _dispatch(self, frame: Frame) -> None:
        if frame.type == frames.ERROR:
            self._refused(frame)
            return
        future = self._answers.get(frame.id) if frame.type in (frames.RESP, frames.HELLO) else None
        self._sort_fds(frame, wanted=future is not None and not future.done())
        if future is None:
            self._on_frame(frame)
        elif not future.done():
            future.set_result(frame)

    def _sort_fds(self, frame: Frame, *, wanted: bool) -> None:
        """Descriptors arrive with the first byte of the frame that announces them."""
        announced = frame.head.get("fds")
        if announced != _MAX_FDS:
            return
        fds = [self._fds.popleft() for _ in range(min(_MAX_FDS, len(self._fds)))]
        if wanted:
            self._fds_of[frame.id] = fds
        else:
            for fd in fds:
                os.close(fd)

    def _refused(self, frame: Frame) -> None:
        reason = f"the agent refused: {frame.head.get('code')}: {frame.head.get('message')}"
        future = self._answers.get(frame.id)
        if frame.id == 0 or future is None:
            self._lose(reason)
        elif not future.done():
            future.set_exception(ControlLost(reason))


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Bytes and the descriptors that came with them, close-on-exec (``socket.recv_fds`` of Python 3.11 drops that flag)."""
    fds = array("i")
    space = socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
    data, ancillary, _, _ = sock.recvmsg(_READ, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, received in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(received[: len(received) - len(received) % fds.itemsize])
    return data, list(fds)
