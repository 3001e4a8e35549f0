"""The agent: first process of an instance and supervisor of its workers.

One thread, one poll loop: the host's control connection, dead children, and a worker's descriptors while it loads its
code. When the code is loaded the host drives the worker itself and the agent only watches; no call passes through here.
User code is never in this process.
"""

import contextlib
import hashlib
import hmac
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from nova.agent import frames, rehearsal
from nova.agent.config import AgentConfig
from nova.agent.frames import Frame, FrameDecoder, FrameError
from nova.agent.lines import PrintBuffer
from nova.agent.messages import GuestError, HelloHead, InitHead, LoadedHead, WelcomeHead, WorkerExitHead, take
from nova.agent.process import Worker, adopt_orphans, exit_error, set_dumpable, set_open_files, start_worker
from nova.agent.runners import runner_main, standing_main, worker_init
from nova.agent.worker import Garbage, Ready, Result, TooLong, WorkerSession, init_line

VERSION: Final = "0.1.0"
HELLO_DEADLINE_S: Final = 60.0
"""An agent that nobody greets in this time after its start exits."""
PARTIAL_HELLO_S: Final = 2.0
"""A peer that began to speak must have shown its token in this time."""
PARTIAL_FRAME_S: Final = 30.0
_READ: Final = 1 << 16


def run(control: socket.socket, config: AgentConfig) -> NoReturn:
    """Serve the host on ``control`` (a connected stream socket) until it goes away; never returns.

    The worker of ``config`` is started before the host is heard. Exit code 0 after Stop or a lost connection, 1 when the
    peer could not show the token.
    """
    code = 70
    try:
        code = Supervisor(control, config).run()
    finally:
        os._exit(code)


class _Ended(Exception):
    """The agent's work is over."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class _Outgoing:
    """Bytes for the host; with the first of them go the descriptors of ``worker``, which are closed here after it if told."""

    data: bytes
    worker: Worker | None = None
    close: bool = False


@dataclass(slots=True)
class _Loading:
    """A worker that is loading its code on behalf of the frame ``frame_id``."""

    worker: Worker
    frame_id: int
    with_descriptors: bool
    started: float
    session: WorkerSession = field(default_factory=WorkerSession)
    stdout: PrintBuffer = field(default_factory=PrintBuffer)
    stderr: PrintBuffer = field(default_factory=PrintBuffer)


class Supervisor:
    def __init__(self, control: socket.socket, config: AgentConfig) -> None:
        self._control = control
        self._config = config
        self._started = time.monotonic()
        self._decoder = FrameDecoder()
        self._partial_since: float | None = None
        self._outgoing: deque[_Outgoing] = deque()
        self._poll = select.poll()
        self._on_readable: dict[int, Callable[[], None]] = {}
        self._workers: dict[int, Worker] = {}
        self._loading: dict[int, _Loading] = {}
        self._next_worker = 0
        self._greeted = False
        self._last_id = 0
        self._init: InitHead | None = None
        self._stop_id: int | None = None
        self._stop_at = 0.0
        self._children_fd = -1

    def run(self) -> int:
        """The loop; returns the exit code."""
        self._settle()
        if self._config.worker.kind != "none":
            self._start_standing()
        rehearsal.codecs()
        self._control.setblocking(False)
        self._watch(self._control.fileno(), self._read_control)
        try:
            while True:
                self._turn()
        except _Ended as end:
            return end.code
        finally:
            for worker in self._workers.values():
                worker.signal(signal.SIGKILL)

    # -- the loop ------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Be the init process of this place: closed to the workers' eyes, parent of orphans, woken by their end."""
        set_dumpable(False)
        adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._children_fd, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        self._watch(self._children_fd, self._reap)

    def _turn(self) -> None:
        for fd, events in self._poll.poll(self._timeout_ms()):
            if events & select.POLLOUT and fd == self._control.fileno():
                self._flush()
            if events & ~select.POLLOUT and (handler := self._on_readable.get(fd)) is not None:
                handler()
        self._check_times()

    def _timeout_ms(self) -> int | None:
        waits = []
        if not self._greeted:
            waits.append(self._started + HELLO_DEADLINE_S)
        if self._partial_since is not None:
            waits.append(self._partial_since + (PARTIAL_FRAME_S if self._greeted else PARTIAL_HELLO_S))
        if self._stop_id is not None:
            waits.append(self._stop_at)
        return None if not waits else max(0, int((min(waits) - time.monotonic()) * 1000) + 1)

    def _check_times(self) -> None:
        now = time.monotonic()
        if not self._greeted and now >= self._started + HELLO_DEADLINE_S:
            raise _Ended(1)
        if self._partial_since is not None:
            if not self._greeted and now >= self._partial_since + PARTIAL_HELLO_S:
                raise _Ended(1)
            if now >= self._partial_since + PARTIAL_FRAME_S:
                self._fatal(FrameError("bad_frame", "a frame was not completed in time"))
        if self._stop_id is not None and (not self._workers or now >= self._stop_at):
            self._finish_stop(self._stop_id)

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._on_readable[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._on_readable.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # -- the control connection ----------------------------------------------------------------------------------

    def _read_control(self) -> None:
        try:
            data = self._control.recv(_READ)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise _Ended(0)
        try:
            for frame in self._decoder.feed(data):
                self._receive(frame)
        except FrameError as error:
            self._fatal(error)
        if not self._decoder.partial:
            self._partial_since = None
        elif self._partial_since is None:
            self._partial_since = time.monotonic()

    def _fatal(self, error: FrameError) -> NoReturn:
        if self._greeted:
            self._send(frames.ERROR, 0, {"code": error.code, "message": str(error)})
        raise _Ended(1)

    def _receive(self, frame: Frame) -> None:
        if not self._greeted:
            self._greet(frame)
            return
        if frame.id <= self._last_id or frame.id % 2 == 0:
            raise FrameError("bad_id", f"frame id {frame.id} does not follow {self._last_id}")
        self._last_id = frame.id
        if frame.type == frames.INIT:
            self._load(frame)
        elif frame.type == frames.PING:
            self._send(frames.RESP, frame.id, {"ok": True, "workers": len(self._workers)})
        elif frame.type == frames.ADD_WORKER:
            self._add_worker(frame)
        elif frame.type == frames.STOP:
            self._stop(frame)
        elif frame.type in frames.SHELL_TYPES:
            self._send(frames.ERROR, frame.id, {"code": "forbidden", "message": "this instance has no shell"})
        else:
            text = f"frame type {frame.type} is not known here"
            self._send(frames.ERROR, frame.id, {"code": "unknown_type", "message": text})

    def _greet(self, frame: Frame) -> None:
        """Only the right token, first and in time, gets an answer."""
        try:
            hello = HelloHead.of(frame.head)
            token = bytes.fromhex(hello.token)
        except (FrameError, ValueError):
            raise _Ended(1) from None
        digest = hashlib.sha256(token).digest()
        if frame.type != frames.HELLO or not hmac.compare_digest(digest, self._config.token_sha256):
            raise _Ended(1)
        if hello.instance_id != self._config.instance_id:
            raise _Ended(1)
        self._greeted = True
        self._last_id = frame.id
        if not hello.proto[0] <= frames.PROTOCOL <= hello.proto[1]:
            self._fatal(FrameError("version", f"this agent speaks protocol version {frames.PROTOCOL} alone"))
        standing = self._workers.get(0)
        welcome = WelcomeHead(
            agent=VERSION,
            runtimes=(self._config.runtime,),
            boot_us=_micros(self._started),
            fds=3 if standing else 0,
            max_message=min(hello.max_message, frames.MAX_MESSAGE),
        )
        self._send(frames.HELLO, frame.id, welcome.as_head(), standing)

    def _send(
        self, kind: int, frame_id: int, head: Mapping[str, Any], worker: Worker | None = None, close: bool = False
    ) -> None:
        self._outgoing.append(_Outgoing(frames.encode(kind, frame_id, head), worker, close))
        self._flush()

    def _flush(self) -> None:
        while self._outgoing:
            item = self._outgoing[0]
            try:
                if item.worker is None:
                    sent = self._control.send(item.data)
                else:
                    sent = socket.send_fds(self._control, [item.data], item.worker.descriptors())
            except BlockingIOError:
                self._poll.modify(self._control.fileno(), select.POLLIN | select.POLLOUT)
                return
            except ConnectionError:
                raise _Ended(0) from None
            if item.worker is not None and item.close:
                item.worker.close()
            item.worker = None
            item.data = item.data[sent:]
            if not item.data:
                self._outgoing.popleft()
        self._poll.modify(self._control.fileno(), select.POLLIN)

    # -- workers -------------------------------------------------------------------------------------------------

    def _start_standing(self) -> None:
        """The worker that boots before a function is known."""
        self._start(standing_main(self._config))

    def _start(self, main: Callable[[], NoReturn]) -> Worker:
        worker = start_worker(self._next_worker, main)
        self._next_worker += 1
        self._workers[worker.number] = worker
        return worker

    def _load(self, frame: Frame) -> None:
        init = InitHead.of(frame.head)
        if init.runtime != self._config.runtime:
            self._refuse(frame, "Nova.InitError", f"this instance runs {self._config.runtime}, not {init.runtime}")
            return
        if self._init is not None:
            self._refuse(frame, "Nova.InitError", "this instance has a function loaded already")
            return
        self._init = init
        main = runner_main(self._config, init)
        standing = self._workers.get(0)
        if main is not None and standing is not None:
            standing.signal(signal.SIGKILL)
            standing = None
        worker = standing or self._start(main or standing_main(self._config))
        self._begin_loading(worker, frame.id, init, with_descriptors=standing is None)

    def _add_worker(self, frame: Frame) -> None:
        """One more worker of the loaded function, for one more call at a time."""
        if self._init is None or len(self._workers) >= self._init.concurrency:
            self._refuse(frame, "Nova.NotReady", "no further worker can be started")
            return
        main = runner_main(self._config, self._init) or standing_main(self._config)
        self._begin_loading(self._start(main), frame.id, self._init, with_descriptors=True)

    def _refuse(self, frame: Frame, kind: str, message: str) -> None:
        head = LoadedHead(ok=False, worker=0, error=GuestError(kind, message))
        self._send(frames.RESP, frame.id, head.as_head())

    def _begin_loading(self, worker: Worker, frame_id: int, init: InitHead, *, with_descriptors: bool) -> None:
        loading = _Loading(worker, frame_id, with_descriptors, time.monotonic())
        self._loading[worker.number] = loading
        line, stdout, stderr = worker.descriptors()
        self._watch(line, lambda: self._read_line(loading))
        self._watch(stdout, lambda: self._read_print(loading, stdout, loading.stdout))
        self._watch(stderr, lambda: self._read_print(loading, stderr, loading.stderr))
        set_open_files(worker.pid, init.open_files)
        # Nothing of the user's runs in the worker yet, so it reads at once; if it is dead its exit tells the rest.
        worker.line.setblocking(True)
        with contextlib.suppress(ConnectionError):
            worker.line.sendall(init_line(worker_init(self._config, init)))
        worker.line.setblocking(False)

    def _read_line(self, loading: _Loading) -> None:
        try:
            data = loading.worker.line.recv(_READ)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._unwatch(loading.worker.line.fileno())
            return  # the worker's end is reported by its exit
        for event in loading.session.feed(data):
            if isinstance(event, Ready):
                self._finish_loading(loading, event, None)
                return
            if isinstance(event, Result):
                reason = event.error or GuestError("Nova.InitError", "the worker answered before it was asked")
            elif isinstance(event, Garbage | TooLong):
                reason = GuestError("Nova.InitError", "the worker does not speak the line protocol")
            else:
                continue
            self._finish_loading(loading, None, reason)
            return

    def _read_print(self, loading: _Loading, fd: int, prints: PrintBuffer) -> None:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return
        if data:
            prints.add(data)
        else:
            self._unwatch(fd)

    def _finish_loading(self, loading: _Loading, ready: Ready | None, error: GuestError | None) -> None:
        worker = loading.worker
        del self._loading[worker.number]
        for fd, prints in ((worker.stdout, loading.stdout), (worker.stderr, loading.stderr)):
            drain(fd, prints)
        for fd in worker.descriptors():
            self._unwatch(fd)
        head = LoadedHead(
            ok=ready is not None,
            worker=worker.number,
            fds=3 if ready is not None and loading.with_descriptors else 0,
            init_us=_micros(loading.started),
            concurrency=ready.concurrency if ready else 1,
            multiplex=ready is not None and ready.multiplex,
            stdout=loading.stdout.take(),
            stderr=loading.stderr.take(),
            error=error,
        )
        self._send(frames.RESP, loading.frame_id, head.as_head(), worker if head.fds else None, close=True)
        if not head.fds:
            worker.close()

    def _reap(self) -> None:
        """Bury every dead child; the end of a worker is reported."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._children_fd, 512):
                pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = next((worker for worker in self._workers.values() if worker.pid == pid), None)
            if worker is not None:
                self._worker_ended(worker, status)

    def _worker_ended(self, worker: Worker, status: int) -> None:
        del self._workers[worker.number]
        error = exit_error(status)
        code = os.waitstatus_to_exitcode(status)
        ended = WorkerExitHead(
            worker=worker.number,
            pid=worker.pid,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
        )
        loading = self._loading.get(worker.number)
        if loading is not None:
            self._read_line(loading)
        if worker.number in self._loading and loading is not None:
            self._finish_loading(loading, None, error)
        if self._greeted:
            self._send(frames.WORKER_EXIT, 0, ended.as_head())

    # -- the end -------------------------------------------------------------------------------------------------

    def _stop(self, frame: Frame) -> None:
        """SIGTERM to the workers; they have ``grace_ms`` to end."""
        grace_ms = take(frame.head, "grace_ms", int)
        self._stop_id, self._stop_at = frame.id, time.monotonic() + grace_ms / 1000
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    def _finish_stop(self, frame_id: int) -> NoReturn:
        self._send(frames.RESP, frame_id, {"ok": True})
        raise _Ended(0)


def drain(fd: int, prints: PrintBuffer) -> None:
    """Everything that lies in a pipe now."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, _READ):
            prints.add(data)


def _wake(_number: int, _frame: object) -> None:
    """A Python-level handler must exist for the wake-up descriptor to be written."""


def _micros(since: float) -> int:
    return int((time.monotonic() - since) * 1e6)
