"""``nova up --workers N``: the process that owns the listening sockets and the embedded database, and keeps N workers running.

It has no event loop and no threads, so that it can fork at any time: a worker begins with everything imported, and one that
died is back in a fraction of a second. Workers end when the supervisor does, however it dies.
"""

import asyncio
import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog
import uuid_utils
import uvloop

import nova.app.crew  # noqa: F401  imported before workers are forked: they all need it
from nova.app.nova import Nova
from nova.app.process import Progress
from nova.app.reach import Seat
from nova.config_sources import Loaded
from nova.errors import NovaError
from nova.execution.homes import Demands
from nova.execution.ledger import Ledger
from nova.http.shares import Shares
from nova.http.tls import tls_context
from nova.listen import Address, activated, listening_socket
from nova.store.embedded import DirectoryLock, EmbeddedPostgres

log = structlog.get_logger(__name__)
START_S = 120.0
"""How long the first workers may take to get ready."""
STEADY_S = 10.0
"""A worker that lived for so long is started again at once; others after a pause that doubles."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
_MORE_S = 15.0
"""beyond ``daemon.drain_s``, for a worker that ends in order"""
_LOOK_S = 0.2
_MAX_SOCKET_PATH = 80
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    number: int
    pid: int
    pipe: socket.socket
    began: float
    ready: bool = False
    said: bytes = b""


class Supervisor:
    """:meth:`start`, then :meth:`watch` until a signal, then :meth:`close`."""

    def __init__(self, loaded: Loaded, *, address: Address, on_progress: Progress = lambda _step: None) -> None:
        self._loaded = loaded
        self._address = address
        self._say = on_progress
        self._count = loaded.settings.daemon.workers
        self._children: dict[int, _Child] = {}
        self._pauses: dict[int, float] = {}
        self._due: dict[int, float] = {}
        self._sockets: list[socket.socket] = []
        self._lock: DirectoryLock | None = None
        self._database: EmbeddedPostgres | None = None
        self._meeting: Path | None = None
        self._ledger = Ledger(self._count)
        self._shares = Shares(self._count)
        self._demands = Demands(self._count)
        self._selector = selectors.DefaultSelector()
        self._leaving = False
        self.url = f"http://{address.shown}"

    @property
    def leaving(self) -> bool:
        """Has a signal come?"""
        return self._leaving

    def start(self) -> None:
        """Everything up, or nothing left behind. Raises what stood in the way: DataDirectoryBusy, OSError, NovaError or
        RuntimeError."""
        signal.signal(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, self._leave)
        try:
            self._open()
            self._say(f"starting {self._count} workers")
            for number in range(self._count):
                self._fork(number, again=False)
            limit = time.monotonic() + START_S
            while not self._leaving and not all(child.ready for child in self._children.values()):
                if time.monotonic() > limit:
                    raise RuntimeError(f"the workers were not ready within {START_S:.0f} s")
                self._turn(_LOOK_S)
        except BaseException:
            self.close()
            raise
        log.info("ready", url=self.url, workers=self._count)

    def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Keep the workers running until a signal, or until ``until`` says so (asked a few times a second)."""
        while not self._leaving and not until():
            self._turn(_LOOK_S)

    def close(self) -> None:
        """End the workers in order, then what they stood on. Idempotent."""
        self._leaving = True
        for child in self._children.values():
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        limit = time.monotonic() + self._loaded.settings.daemon.drain_s + _MORE_S
        while self._children:
            if time.monotonic() > limit:
                log.error("workers do not end and are killed", workers=sorted(self._children))
                for child in self._children.values():
                    os.kill(child.pid, signal.SIGKILL)
                limit = float("inf")
            self._turn(_LOOK_S)
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._meeting is not None:
            shutil.rmtree(self._meeting, ignore_errors=True)
            self._meeting = None
        if self._database is not None:
            self._database.stop()
            self._database = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # What the workers stand on

    def _open(self) -> None:
        settings = self._loaded.settings
        if settings.grpc.enabled:
            raise NovaError(
                "validation_failed", "grpc.enabled needs a process of its own for calls: run comets, or one worker"
            )
        secure = tls_context(settings.http) is not None
        self._sockets = activated() or [listening_socket(self._address)]
        host, port = self._sockets[0].getsockname()[:2]
        self._address = Address(host, port)
        self.url = f"{'https' if secure else 'http'}://{self._address.shown}"
        lock = DirectoryLock(settings.data_dir)
        lock.acquire()
        self._lock = lock
        self._meeting = _meeting_place(settings.data_dir)
        if not settings.postgres.dsn:
            self._say("starting the database")
            self._database = EmbeddedPostgres(settings.data_dir)
            self._database.start()

    # Workers

    def _fork(self, number: int, *, again: bool) -> None:
        assert self._meeting is not None
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            for child in self._children.values():
                child.pipe.close()
            self._selector.close()
            if self._database is not None:
                self._database.disown()
            seat = Seat(
                number, self._count, self._sockets, self._meeting, self._ledger, self._shares, self._demands, again
            )
            _be_worker(self._loaded, self._address, seat, theirs)
        theirs.close()
        ours.setblocking(False)
        child = self._children[number] = _Child(number, pid, ours, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _turn(self, timeout_s: float) -> None:
        """Hear what workers say, and start those again that are due."""
        for key, _ in self._selector.select(timeout_s):
            self._hear(key.data)
        now = time.monotonic()
        for number in [number for number, at in self._due.items() if at <= now and not self._leaving]:
            del self._due[number]
            self._fork(number, again=True)

    def _hear(self, child: _Child) -> None:
        try:
            said = child.pipe.recv(65536)
        except BlockingIOError:
            return
        except ConnectionResetError:
            said = b""
        if said:
            child.said += said
            child.ready = child.ready or child.said.startswith(b"ready\n")
            return
        self._selector.unregister(child.pipe)
        child.pipe.close()
        _, status = os.waitpid(child.pid, 0)
        del self._children[child.number]
        self._ledger.clear(child.number)
        self._shares.leave(child.number)
        self._demands.tell(child.number, 0.0)
        if not self._leaving:
            self._ended(child, os.waitstatus_to_exitcode(status))

    def _ended(self, child: _Child, code: int) -> None:
        """A worker is gone that nobody asked to go."""
        if not child.ready and child.number not in self._pauses:  # one of the first: the platform does not start
            raise _failure(child.said)
        lived = time.monotonic() - child.began
        pause = 0.0 if lived >= STEADY_S else self._pauses.get(child.number, 0.0)
        self._pauses[child.number] = min(LONGEST_PAUSE_S, pause * 2 or FIRST_PAUSE_S)
        self._due[child.number] = time.monotonic() + pause
        said = "" if child.ready else str(_failure(child.said))
        log.error("a worker ended and is started again", worker=child.number, pid=child.pid, code=code, said=said)

    def _leave(self, _number: int, _frame: object) -> None:
        self._leaving = True


def _failure(said: bytes) -> Exception:
    """Why a worker could not start, as it said itself."""
    with suppress(ValueError, KeyError):
        told = json.loads(said)
        if told["code"] is not None:
            return NovaError(told["code"], told["detail"])
        return RuntimeError(told["detail"])
    return RuntimeError("a worker ended while it started; its log says why")


def _meeting_place(data_dir: Path) -> Path:
    """An empty directory for the workers' sockets, whose paths have to be short."""
    inside = data_dir.resolve() / "run" / "workers"
    if len(str(inside)) > _MAX_SOCKET_PATH:
        return Path(tempfile.mkdtemp(prefix="nova-workers-"))
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir(parents=True, mode=0o700)
    return inside


def _be_worker(loaded: Loaded, address: Address, seat: Seat, pipe: socket.socket) -> NoReturn:
    """The life of a forked worker."""
    code = 1
    try:
        _end_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        uuid_utils.reseed_rng()  # else all workers would make the same ids
        structlog.contextvars.bind_contextvars(worker=seat.number)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(loaded, address, seat, pipe))
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException as exc:
        if not isinstance(exc, NovaError | OSError | RuntimeError):
            log.exception("a worker failed")
        told = {"code": getattr(exc, "code", None), "detail": getattr(exc, "detail", None) or str(exc).strip()}
        with suppress(OSError):
            pipe.sendall(json.dumps(told).encode())
    finally:
        sys.stderr.flush()
        os._exit(code)


async def _live(loaded: Loaded, address: Address, seat: Seat, pipe: socket.socket) -> None:
    worker = Nova(loaded, address=address, seat=seat)
    try:
        await worker.start()
        pipe.sendall(b"ready\n")
        await worker.wait()
    finally:
        await worker.close()


def _end_with_parent() -> None:
    """SIGTERM for this process when the supervisor is gone, and at once when it is gone already."""
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if parent == 1 or os.getppid() != parent:
        raise RuntimeError("the supervisor is gone")
