"""The agent: first process of an instance and supervisor of its workers.

One thread, one poll loop: the host's control connection, dead children, and a worker's descriptors while it loads its
code. When the code is loaded the host drives the worker itself and the agent only watches; no call passes through here.
User code is never in this process.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from nova.agent import frames, rehearsal
from nova.agent.config import AgentConfig
from nova.agent.control import Control, Ended, Poller
from nova.agent.frames import Frame
from nova.agent.lines import PrintBuffer
from nova.agent.messages import GuestError, InitHead, LoadedHead, WorkerExitHead, take
from nova.agent.process import Worker, adopt_orphans, exit_error, set_dumpable, set_open_files, start_worker
from nova.agent.runners import runner_main, standing_main, worker_init
from nova.agent.worker import Garbage, Ready, Result, TooLong, WorkerSession, init_line

_READ: Final = 1 << 16


def run(control: socket.socket, config: AgentConfig) -> NoReturn:
    """Serve the host on ``control`` (a connected stream socket) until it goes away; never returns.

    The worker of ``config`` is started before the host is heard. Exit code 0 after Stop or a lost connection, 1 when the
    peer could not show the token or broke the protocol.
    """
    code = 70
    try:
        code = Supervisor(control, config).run()
    finally:
        os._exit(code)


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
        self._config = config
        self._poller = Poller()
        self._control = Control(
            control, config, self._poller, on_frame=self._receive, standing=lambda: self._workers.get(0)
        )
        self._workers: dict[int, Worker] = {}
        self._loading: dict[int, _Loading] = {}
        self._next_worker = 0
        self._init: InitHead | None = None
        self._stop_id: int | None = None
        self._stop_at = 0.0
        self._children_fd = -1

    def run(self) -> int:
        """The loop; returns the exit code."""
        self._settle()
        if self._config.worker.kind != "none":
            self._start(standing_main(self._config))
        rehearsal.codecs()
        self._control.open()
        try:
            while True:
                waits = [at for at in (self._control.deadline(), self._stop_at or None) if at is not None]
                self._poller.turn(min(waits, default=None))
                self._control.check_deadline()
                self._check_stop()
        except Ended as end:
            return end.code
        finally:
            for worker in self._workers.values():
                worker.signal(signal.SIGKILL)

    def _settle(self) -> None:
        """Be the init process of this place: closed to the workers' eyes, parent of orphans, woken by their end."""
        set_dumpable(False)
        adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        self._children_fd, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake)
        self._poller.watch(self._children_fd, self._reap)

    def _receive(self, frame: Frame) -> None:
        if frame.type == frames.INIT:
            self._load(frame)
        elif frame.type == frames.PING:
            self._control.send(frames.RESP, frame.id, {"ok": True, "workers": len(self._workers)})
        elif frame.type == frames.ADD_WORKER:
            self._add_worker(frame)
        elif frame.type == frames.STOP:
            self._stop(frame)
        elif frame.type in frames.SHELL_TYPES:
            self._control.refuse(frame.id, "forbidden", "this instance has no shell")
        else:
            self._control.refuse(frame.id, "unknown_type", f"frame type {frame.type} is not known here")

    # -- workers -------------------------------------------------------------------------------------------------

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
        self._control.send(frames.RESP, frame.id, head.as_head())

    def _begin_loading(self, worker: Worker, frame_id: int, init: InitHead, *, with_descriptors: bool) -> None:
        loading = _Loading(worker, frame_id, with_descriptors, time.monotonic())
        self._loading[worker.number] = loading
        line, stdout, stderr = worker.descriptors()
        self._poller.watch(line, lambda: self._read_line(loading))
        self._poller.watch(stdout, lambda: self._read_print(loading, stdout, loading.stdout))
        self._poller.watch(stderr, lambda: self._read_print(loading, stderr, loading.stderr))
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
            self._poller.unwatch(loading.worker.line.fileno())
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
            self._poller.unwatch(fd)

    def _finish_loading(self, loading: _Loading, ready: Ready | None, error: GuestError | None) -> None:
        worker = loading.worker
        del self._loading[worker.number]
        for fd, prints in ((worker.stdout, loading.stdout), (worker.stderr, loading.stderr)):
            drain(fd, prints)
        for fd in worker.descriptors():
            self._poller.unwatch(fd)
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
        self._control.send(frames.RESP, loading.frame_id, head.as_head(), worker if head.fds else None, close=True)
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
        self._control.tell(frames.WORKER_EXIT, ended.as_head())

    # -- the end -------------------------------------------------------------------------------------------------

    def _stop(self, frame: Frame) -> None:
        """SIGTERM to the workers; they have ``grace_ms`` to end."""
        grace_ms = take(frame.head, "grace_ms", int)
        self._stop_id, self._stop_at = frame.id, time.monotonic() + grace_ms / 1000
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    def _check_stop(self) -> None:
        if self._stop_id is not None and (not self._workers or time.monotonic() >= self._stop_at):
            self._control.send(frames.RESP, self._stop_id, {"ok": True})
            raise Ended(0)


def drain(fd: int, prints: PrintBuffer) -> None:
    """Everything that lies in a pipe now."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, _READ):
            prints.add(data)


def _wake(_number: int, _frame: object) -> None:
    """A Python-level handler must exist for the wake-up descriptor to be written."""


def _micros(since: float) -> int:
    return int((time.monotonic() - since) * 1e6)
