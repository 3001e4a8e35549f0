"""Workers that load their code. Until a load has ended the agent alone reads the worker's descriptors."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nova.agent.config import AgentConfig
from nova.agent.control import Poller
from nova.agent.lines import PrintBuffer
from nova.agent.messages import GuestError, InitHead, LoadedHead
from nova.agent.process import Worker, exit_error, set_open_files
from nova.agent.worker import Ask, Garbage, Ready, Result, TooLong, WorkerSession

_READ: Final = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Code:
    """What a worker serves. ``config`` says where it lies; ``tree`` is that folder if a reload brought it."""

    config: AgentConfig
    init: InitHead
    tree: str | None = None


@dataclass(slots=True, eq=False)
class Loading:
    """A worker that loads ``code`` on behalf of the frame ``frame_id``."""

    worker: Worker
    code: Code
    frame_id: int
    with_descriptors: bool
    started: float = field(default_factory=time.monotonic)
    session: WorkerSession = field(default_factory=WorkerSession)
    stdout: PrintBuffer = field(default_factory=PrintBuffer)
    stderr: PrintBuffer = field(default_factory=PrintBuffer)


class Loader:
    """Follows each load to its end and tells ``finished`` once, with what is to be answered."""

    def __init__(self, poller: Poller, finished: Callable[[Loading, LoadedHead], None]) -> None:
        self._poller = poller
        self._finished = finished
        self._loading: dict[int, Loading] = {}

    def begin(self, loading: Loading, line: bytes) -> None:
        """``line`` is the worker's init line, or another that it answers in the same way."""
        worker = loading.worker
        self._loading[worker.number] = loading
        answers, stdout, stderr = worker.descriptors()
        self._poller.watch(answers, lambda: self._read_line(loading))
        self._poller.watch(stdout, lambda: self._read_print(stdout, loading.stdout))
        self._poller.watch(stderr, lambda: self._read_print(stderr, loading.stderr))
        set_open_files(worker.pid, loading.code.init.open_files)
        # Nothing of the user's runs in the worker yet, so it reads soon; if it is dead its exit tells the rest.
        os.set_blocking(worker.line, True)
        with contextlib.suppress(ConnectionError):
            _write_all(worker.line, line)
        os.set_blocking(worker.line, False)

    def ended(self, worker: Worker, status: int) -> None:
        """A worker has died (its wait status); what it had written before still counts."""
        loading = self._loading.get(worker.number)
        if loading is not None:
            self._read_line(loading)
            self.fail(loading, exit_error(status))

    def fail(self, loading: Loading, error: GuestError) -> None:
        """End a load that is still under way."""
        if loading.worker.number in self._loading:
            self._finish(loading, None, error)

    def _read_line(self, loading: Loading) -> None:
        try:
            data = os.read(loading.worker.line, _READ)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._poller.unwatch(loading.worker.line)
            return  # the worker's end is reported by its exit
        for event in loading.session.feed(data):
            if isinstance(event, Ready):
                self._finish(loading, event, None)
                return
            if isinstance(event, Result):
                reason = event.error or GuestError("Nova.InitError", "the worker answered before it was asked")
            elif isinstance(event, Ask | Garbage | TooLong):
                reason = GuestError("Nova.InitError", "the worker does not speak the line protocol")
            else:
                continue
            self._finish(loading, None, reason)
            return

    def _read_print(self, fd: int, prints: PrintBuffer) -> None:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return
        if data:
            prints.add(data)
        else:
            self._poller.unwatch(fd)

    def _finish(self, loading: Loading, ready: Ready | None, error: GuestError | None) -> None:
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
            init_us=int((time.monotonic() - loading.started) * 1e6),
            concurrency=ready.concurrency if ready else 1,
            multiplex=ready is not None and ready.multiplex,
            stdout=loading.stdout.take(),
            stderr=loading.stderr.take(),
            error=error,
            import_us=ready.import_us if ready else 0,
        )
        self._finished(loading, head)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def drain(fd: int, prints: PrintBuffer) -> None:
    """Everything that lies in a pipe now."""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, _READ):
            prints.add(data)
