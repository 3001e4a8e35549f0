"""The agent's end of the control connection: the handshake, frames in, frames and descriptors out, and its deadlines."""

import hashlib
import hmac
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from nova.agent import frames
from nova.agent.config import AgentConfig
from nova.agent.frames import Frame, FrameDecoder, FrameError
from nova.agent.messages import HelloHead, WelcomeHead
from nova.agent.process import Worker

VERSION: Final = "0.1.0"
HELLO_DEADLINE_S: Final = 60.0
"""An agent that nobody greets in this time after its start exits."""
PARTIAL_HELLO_S: Final = 2.0
"""A peer that began to speak must have shown its token in this time."""
PARTIAL_FRAME_S: Final = 30.0
_READ: Final = 1 << 16


class Ended(Exception):
    """The agent's work is over; ``code`` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Poller:
    """Who reads when a descriptor has something."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, reader: Callable[[], None]) -> None:
        self._readers[fd] = reader
        self._poll.register(fd, select.POLLIN)

    def unwatch(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def when_writable(self, fd: int, writer: Callable[[], None] | None) -> None:
        """Call ``writer`` when a watched descriptor takes bytes again; None ends that."""
        if writer is not None:
            self._writers[fd] = writer
        elif self._writers.pop(fd, None) is None:
            return
        self._poll.modify(fd, select.POLLIN | (select.POLLOUT if writer else 0))

    def turn(self, until: float | None) -> None:
        """Wait for something, at most until a moment in monotonic seconds, and have it handled."""
        timeout_ms = None if until is None else max(0, int((until - time.monotonic()) * 1000) + 1)
        for fd, events in self._poll.poll(timeout_ms):
            if events & select.POLLOUT and (writer := self._writers.get(fd)) is not None:
                writer()
            if events & ~select.POLLOUT and (reader := self._readers.get(fd)) is not None:
                reader()


def known_host(frame: Frame, config: AgentConfig) -> HelloHead | None:
    """The Hello of the host that this agent is for; None: anything else."""
    try:
        hello = HelloHead.of(frame.head)
        token = bytes.fromhex(hello.token)
    except (FrameError, ValueError):
        return None
    known = hmac.compare_digest(hashlib.sha256(token).digest(), config.token_sha256)
    return hello if frame.type == frames.HELLO and known and hello.instance_id == config.instance_id else None


@dataclass(slots=True)
class _Outgoing:
    """Bytes for the host; with the first of them go the descriptors of ``worker``, which are closed here after it if told."""

    data: bytes
    worker: Worker | None = None
    close: bool = False


class Control:
    """Frames of a host that has shown its token. Raises :class:`Ended` where the connection is over."""

    def __init__(
        self,
        sock: socket.socket,
        config: AgentConfig,
        poller: Poller,
        *,
        on_frame: Callable[[Frame], None],
        standing: Callable[[], Worker | None],
        greeted: bool = False,
    ) -> None:
        """``standing`` gives the worker whose descriptors go with the answer to Hello. ``greeted``: the host need not say it,
        and its pings all have the same id."""
        self._config = config
        self._poller = poller
        self._on_frame = on_frame
        self._standing = standing
        self._pinged = greeted
        self._begin(sock, greeted=greeted)

    def _begin(self, sock: socket.socket, *, greeted: bool = False) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._started = time.monotonic()
        self._decoder = FrameDecoder()
        self._partial_since: float | None = None
        self._outgoing: deque[_Outgoing] = deque()
        self._greeted = greeted
        self._last_id = 0
        self._last_question = 0
        self._resting = False

    def open(self) -> None:
        self._poller.watch(self._sock.fileno(), self._on_readable)

    def rest(self) -> None:
        """Close this connection when all is sent. Nobody is spoken to until :meth:`resume`."""
        self._resting = True
        self._flush()

    def resume(self, sock: socket.socket) -> None:
        """Another host, which has to show its token like the first."""
        if self._sock.fileno() >= 0:
            self._poller.unwatch(self._sock.fileno())
            self._sock.close()
        self._begin(sock)
        self.open()

    def become(self, config: AgentConfig) -> None:
        """Hosts of later connections have to know the token of ``config``."""
        self._config = config

    # -- deadlines -----------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When the peer will have been silent for too long; None: it may be silent."""
        if self._resting:
            return None
        waits = [] if self._greeted else [self._started + HELLO_DEADLINE_S]
        if self._partial_since is not None:
            waits.append(self._partial_since + (PARTIAL_FRAME_S if self._greeted else PARTIAL_HELLO_S))
        return min(waits, default=None)

    def check_deadline(self) -> None:
        at = self.deadline()
        if at is not None and time.monotonic() >= at:
            self._fail(FrameError("bad_frame", "a frame was not completed in time"))

    # -- in ------------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise Ended(0)
        try:
            found = self._decoder.feed(data)
            for frame in found:
                self._receive(frame)
        except FrameError as error:
            self._fail(error)
        if not self._decoder.partial:
            self._partial_since = None
        elif found or self._partial_since is None:
            self._partial_since = time.monotonic()

    def _receive(self, frame: Frame) -> None:
        if not self._greeted:
            self._greet(frame)
            return
        if frame.type in frames.GUEST_ANSWERS or (self._pinged and frame.type == frames.PING):
            self._on_frame(frame)
            return
        if frame.id <= self._last_id or frame.id % 2 == 0:
            raise FrameError("bad_id", f"frame id {frame.id} does not follow {self._last_id}")
        self._last_id = frame.id
        self._on_frame(frame)

    def _greet(self, frame: Frame) -> None:
        """Only the right token, first and in time, gets an answer."""
        hello = known_host(frame, self._config)
        if hello is None:
            raise Ended(1)
        self._greeted = True
        self._last_id = frame.id
        if not hello.proto[0] <= frames.PROTOCOL <= hello.proto[1]:
            self._fail(FrameError("version", f"this agent speaks protocol version {frames.PROTOCOL} alone"))
        standing = self._standing()
        welcome = WelcomeHead(
            agent=VERSION,
            runtimes=(self._config.runtime,),
            boot_us=int((time.monotonic() - self._started) * 1e6),
            fds=3 if standing else 0,
            features=("direct", "relayed") if self._config.relayed else ("direct",),
            max_message=min(hello.max_message, frames.MAX_MESSAGE),
        )
        self.send(frames.HELLO, frame.id, welcome.as_head(), standing)

    def _fail(self, error: FrameError) -> NoReturn:
        """The peer broke the rules: say so if it has shown its token, then end."""
        if self._greeted:
            self.refuse(0, error.code, str(error))
        raise Ended(1)

    # -- out -----------------------------------------------------------------------------------------------------

    def send(
        self, kind: int, frame_id: int, head: Mapping[str, Any], worker: Worker | None = None, close: bool = False
    ) -> None:
        """Queue a frame, with the descriptors of ``worker`` if given; ``close``: they are closed here once sent."""
        self._outgoing.append(_Outgoing(frames.encode(kind, frame_id, head), worker, close))
        self._flush()

    def ask(self, kind: int, head: Mapping[str, Any], payload: bytes = b"") -> int:
        """Ask the host something; its answer will have the id that this returns. Raises FrameError ``too_large``."""
        number = self._last_question + 2
        data = frames.encode(kind, number, head, payload)
        self._last_question = number
        self._outgoing.append(_Outgoing(data))
        self._flush()
        return number

    def refuse(self, frame_id: int, code: str, message: str) -> None:
        self.send(frames.ERROR, frame_id, {"code": code, "message": message})

    def tell(self, kind: int, head: Mapping[str, Any]) -> None:
        """Something that nobody asked for; before Hello there is nobody to tell."""
        if self._greeted and not self._resting:
            self.send(kind, 0, head)

    def _flush(self) -> None:
        while self._outgoing:
            item = self._outgoing[0]
            try:
                if item.worker is None:
                    sent = self._sock.send(item.data)
                else:
                    sent = socket.send_fds(self._sock, [item.data], item.worker.descriptors())
            except BlockingIOError:
                self._poller.when_writable(self._sock.fileno(), self._flush)
                return
            except ConnectionError:
                raise Ended(0) from None
            if item.worker is not None and item.close:
                item.worker.close()
            item.worker = None
            item.data = item.data[sent:]
            if not item.data:
                self._outgoing.popleft()
        if self._sock.fileno() < 0:
            return
        self._poller.when_writable(self._sock.fileno(), None)
        if self._resting:
            self._poller.unwatch(self._sock.fileno())
            self._sock.close()
