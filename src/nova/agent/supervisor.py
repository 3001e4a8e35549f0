"""The agent: first process of an instance and supervisor of its workers.

One thread, one poll loop: the host's control connection, dead children, and a worker's descriptors while it loads its
code. When the code is loaded the host drives the worker itself and the agent only watches; no call passes through here.
User code is never in this process.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from nova.agent import frames, rehearsal, reload
from nova.agent.config import AgentConfig
from nova.agent.control import Control, Ended, Poller
from nova.agent.environment import worker_init
from nova.agent.frames import Frame
from nova.agent.guest import GuestApi
from nova.agent.loading import Code, Loader, Loading
from nova.agent.messages import (
    DoneHead,
    GuestError,
    InitHead,
    KillWorkerHead,
    LoadedHead,
    ReloadHead,
    WorkerExitHead,
    take,
)
from nova.agent.process import Worker, adopt_orphans, kill_children, set_dumpable, start_worker
from nova.agent.reload import Refused, Reload
from nova.agent.runners import runner_main, standing_main
from nova.agent.worker import init_line


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


class Started(NamedTuple):
    """What stands already: the worker, if there is one, whose descriptors the host has; the end of a pipe that is readable when
    a child has died; the listening socket of the guest API."""

    worker: Worker | None
    children: int
    listener: int


class Supervisor:
    def __init__(self, control: socket.socket, config: AgentConfig, started: Started | None = None) -> None:
        """``started``: the host is known by being at the other end of ``control``, so Hello is not asked for."""
        self._config = config
        self._started = started
        self._poller = Poller()
        self._control = Control(
            control,
            config,
            self._poller,
            on_frame=self._receive,
            standing=lambda: None if config.relayed else self._workers.get(0),
            greeted=started is not None,
        )
        self._loader = Loader(self._poller, self._loaded)
        self._reload = Reload(config.reload_dir)
        self._guest = GuestApi(self._control, self._poller, config.guest_port, config.api_digest)
        self._workers: dict[int, Worker] = {}
        self._serving: dict[int, Code] = {}
        self._ending: dict[int, int | None] = {}
        self._next_worker = 0
        self._code: Code | None = None
        self._committing: Loading | None = None
        self._stop_id: int | None = None
        self._stop_at = 0.0
        self._children_fd = -1

    def run(self) -> int:
        """The loop; returns the exit code."""
        if self._started is None:
            self._begin()
        else:
            self._go_on(self._started)
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

    def _begin(self) -> None:
        self._settle()
        if self._config.stands:
            self._start(standing_main(self._config))
        rehearsal.codecs()  # its memory is touched now, before anybody waits for it
        self._control.open()
        self._guest.open()

    def _go_on(self, started: Started) -> None:
        if started.worker is not None:
            self._workers[0] = started.worker
            self._next_worker = 1
        self._children_fd = started.children
        self._poller.watch(self._children_fd, self._reap)
        self._control.open()
        self._guest.open(socket.socket(fileno=started.listener))

    def _settle(self) -> None:
        """Be the init process of this place: closed to the workers' eyes, parent of orphans, woken by their end."""
        set_dumpable(False)
        adopt_orphans()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _wake if self._config.term_grace_ms else signal.SIG_DFL)
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
        elif frame.type == frames.KILL_WORKER:
            self._kill_worker(frame)
        elif frame.type == frames.RELOAD:
            self._take_new_code(frame)
        elif frame.type == frames.STOP:
            self._stop(frame)
        elif frame.type in frames.GUEST_ANSWERS:
            self._guest.answered(frame)
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
        if self._code is not None:
            self._refuse(frame, "Nova.InitError", "this instance has a function loaded already")
            return
        self._code = code = Code(self._config, init)
        if init.api_token:
            self._guest.token = init.api_token
        if init.loaded:
            self._know(code, frame)
            return
        runner = runner_main(self._config, init)
        standing = self._workers.get(0)
        if runner is not None and standing is not None:
            standing.signal(signal.SIGKILL)
            standing = None
        worker = standing or self._start(_worker_main(code))
        self._begin_loading(worker, code, frame.id, with_descriptors=standing is None or self._config.relayed)

    def _know(self, code: Code, frame: Frame) -> None:
        """The host has loaded the standing worker; it may have died since."""
        worker = self._workers.get(0)
        if worker is not None:
            self._serving[0] = code
            worker.close()
        self._control.send(frames.RESP, frame.id, LoadedHead(ok=True, worker=0).as_head())

    def _add_worker(self, frame: Frame) -> None:
        """One more worker of the loaded function, for one more call at a time."""
        code = self._code
        if code is None or sum(served is code for served in self._serving.values()) >= code.init.concurrency:
            self._refuse(frame, "Nova.NotReady", "no further worker can be started")
            return
        self._begin_loading(self._start(_worker_main(code)), code, frame.id)

    def _refuse(self, frame: Frame, kind: str, message: str) -> None:
        """The answer to a frame that would have loaded code."""
        head = LoadedHead(ok=False, worker=0, error=GuestError(kind, message))
        self._control.send(frames.RESP, frame.id, head.as_head())

    def _begin_loading(self, worker: Worker, code: Code, frame_id: int, *, with_descriptors: bool = True) -> Loading:
        self._serving[worker.number] = code
        loading = Loading(worker, code, frame_id, with_descriptors)
        self._loader.begin(loading, init_line(worker_init(code.config, code.init, self._guest.token)))
        return loading

    def _loaded(self, loading: Loading, head: LoadedHead) -> None:
        """A load has ended, well or not."""
        worker = loading.worker
        if loading is self._committing:
            self._committing = None
            self._reload.discard()
            if head.ok:
                self._code = loading.code
            else:
                self._end(worker)
        given = worker.copy() if self._config.relayed and head.fds else worker
        self._control.send(frames.RESP, loading.frame_id, head.as_head(), given if head.fds else None, close=True)
        if not head.fds:
            worker.close()

    def _kill_worker(self, frame: Frame) -> None:
        """End one worker for the host, which has closed its end; the others go on."""
        worker = self._workers.get(KillWorkerHead.of(frame.head).worker)
        if worker is None:
            self._done(frame.id)
        else:
            self._end(worker, frame.id)

    def _end(self, worker: Worker, frame_id: int | None = None) -> None:
        """Its end is not reported; the frame that asked for it, if any, is answered when nothing of it is left."""
        self._ending[worker.number] = frame_id
        if worker.number in self._workers:
            worker.signal(signal.SIGKILL)

    def _done(self, frame_id: int, error: GuestError | None = None) -> None:
        self._control.send(frames.RESP, frame_id, DoneHead(error is None, error).as_head())

    # -- new code ------------------------------------------------------------------------------------------------

    def _take_new_code(self, frame: Frame) -> None:
        head = ReloadHead.of(frame.head)
        try:
            if head.stage == "begin":
                self._reload.begin(head)
            elif head.stage == "data":
                self._reload.add(frame.payload)
            elif head.stage == "commit":
                self._commit(frame)
                return
            elif head.stage == "abort":
                self._abort()
            else:
                raise Refused("Nova.ValidationFailed", f"a reload has no stage {head.stage!r}")
        except Refused as refused:
            self._done(frame.id, refused.error)
        else:
            self._done(frame.id)

    def _commit(self, frame: Frame) -> None:
        """Load one worker from the new code. When it has, further ones come from there too; the host ends the old ones."""
        if self._code is None:
            self._refuse(frame, "Nova.InvalidState", "there is no code yet that could be replaced")
            self._reload.discard()
            return
        try:
            arrived = self._reload.complete()
        except Refused as refused:
            self._refuse(frame, refused.error.type, refused.error.message)
            return
        init = dataclasses.replace(self._code.init, handler=arrived.handler, entry=arrived.entry)
        code = Code(dataclasses.replace(self._config, code_dir=arrived.tree), init, arrived.tree)
        worker = self._start(functools.partial(reload.unpacked, arrived, _worker_main(code)))
        self._committing = self._begin_loading(worker, code, frame.id)

    def _abort(self) -> None:
        if self._committing is not None:
            self._loader.fail(self._committing, GuestError("Nova.Cancelled", "the reload was aborted"))
        self._reload.discard()

    # -- dead children -------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Bury every dead child; the end of a worker is reported. A signal to end is heard here too."""
        with contextlib.suppress(BlockingIOError):
            while numbers := os.read(self._children_fd, 512):
                if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                    self._end_workers(self._config.term_grace_ms)
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
        code = self._serving.pop(worker.number, None)
        self._loader.ended(worker, status)
        if self._config.relayed:
            worker.close()
        if worker.number in self._ending:
            # What it left behind has become the agent's own children. A process that another worker's call detached
            # from itself cannot be told from them, and ends too.
            kill_children(spare={other.pid for other in self._workers.values()})
            frame_id = self._ending.pop(worker.number)
            if frame_id is not None:
                self._done(frame_id)
        else:
            self._report(worker, os.waitstatus_to_exitcode(status))
        if code is not None and code.tree and code is not self._code and code not in self._serving.values():
            reload.remove(code.tree)

    def _report(self, worker: Worker, code: int) -> None:
        ended = WorkerExitHead(
            worker=worker.number,
            pid=worker.pid,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
        )
        self._control.tell(frames.WORKER_EXIT, ended.as_head())

    # -- the end -------------------------------------------------------------------------------------------------

    def _stop(self, frame: Frame) -> None:
        """The workers have ``grace_ms`` to end."""
        grace_ms = take(frame.head, "grace_ms", int)
        self._stop_id = frame.id
        self._end_workers(grace_ms)

    def _end_workers(self, grace_ms: int) -> None:
        self._stop_at = time.monotonic() + grace_ms / 1000
        for worker in self._workers.values():
            worker.signal(signal.SIGTERM)

    def _check_stop(self) -> None:
        if self._stop_at and (not self._workers or time.monotonic() >= self._stop_at):
            if self._stop_id is not None:
                self._control.send(frames.RESP, self._stop_id, {"ok": True})
            raise Ended(0)


def _worker_main(code: Code) -> Callable[[], NoReturn]:
    return runner_main(code.config, code.init) or standing_main(code.config)


def _wake(_number: int, _frame: object) -> None:
    """A Python-level handler must exist for the wake-up descriptor to be written."""
