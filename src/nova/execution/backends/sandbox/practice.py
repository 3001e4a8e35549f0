"""One instance that serves nobody, before any other: what its processes touch, those of later ones are given beforehand.

Runs in the launcher at its start. The practice place has namespaces of its own, and runs the platform's code alone.
Guest-side code: standard library only.
"""

import hashlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Final, NoReturn

from nova.agent import frames, pages, rehearsal
from nova.agent.config import AgentConfig, WorkerLaunch
from nova.agent.messages import FunctionRef, HelloHead, InitHead
from nova.agent.pages import Pages
from nova.agent.process import Worker
from nova.agent.runners import bootstrap
from nova.agent.supervisor import Supervisor
from nova.agent.worker import call_line
from nova.execution.backends.sandbox import kernel, namespaces

TIMEOUT_S: Final = 5.0
"""For each answer of the practice instance."""
_CODE: Final = "def handler(event, context):\n    return {'seen': event, 'by': context.request_id}\n"
_ID: Final = "00000000-0000-0000-0000-000000000000"
_READ: Final = 1 << 16


def practise(module: str) -> None:
    """Learn what an agent and its worker (``module``) touch up to the first answer; all later forks of this process have it
    beforehand. Where it cannot be seen (an ordinary user may not look into an agent) they go on to rehearse."""
    folder = tempfile.mkdtemp(prefix="nova-practice-", dir="/tmp")
    worker = bootstrap(module)
    # Nothing is had beforehand in practice: it must touch what others will, and no more.
    rehearsal.replace(_nothing)
    worker.replace_rehearsal(_nothing)
    try:
        os.chmod(folder, 0o755)
        with open(f"{folder}/main.py", "w") as file:
            file.write(_CODE)
        of_agent, of_worker = watch(module, folder)
    except (OSError, frames.FrameError, EOFError, ValueError):
        rehearsal.replace(None)
        worker.replace_rehearsal(None)
    else:
        rehearsal.replace(of_agent.have)
        worker.replace_rehearsal(of_worker.have)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nothing() -> None:
    """As a rehearsal: none."""


def watch(module: str, folder: str) -> tuple[Pages, Pages]:
    """What the agent and the worker of a new instance touch that runs the code in ``folder``.

    Raises OSError, EOFError, FrameError or ValueError when that cannot be seen.
    """
    known = pages.mappings()
    token = bytes(32)
    ours, theirs = socket.socketpair()
    config = AgentConfig(hashlib.sha256(token).digest(), "practice", "python", WorkerLaunch("fork", module), folder)

    def main() -> NoReturn:
        ours.close()
        namespaces.loopback_up()
        os._exit(Practice(theirs, config).run())

    with ours:
        with theirs:
            pid = kernel.clone(namespaces.INSTANCE_NAMESPACES | kernel.CLONE_NEWNET, main)
        try:
            ours.settimeout(TIMEOUT_S)
            with _greet(ours, token) as line:
                with open(f"/proc/{pid}/task/{pid}/children") as children:
                    _witness, worker = map(int, children.read().split())
                _until_asleep(worker)
                # What each of them had when it began to wait was touched before anybody waited for it, or left by others.
                before = [pages.touched(each, known).written for each in (pid, worker)]
                _play(ours, line)
                after = [pages.touched(each, known) for each in (pid, worker)]
            for each, had in zip(after, before, strict=True):
                each.written = pages.less(each.written, had)
            return after[0], after[1]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Practice(Supervisor):
    """With a child beside the worker that only keeps what it was forked with: a page that the agent or the worker has to
    itself is then one that it wrote to, and not one that the other has left to it."""

    def _start(self, main: Callable[[], NoReturn]) -> Worker:
        if os.fork() == 0:
            while True:
                signal.pause()
        return super()._start(main)


def _greet(control: socket.socket, token: bytes) -> socket.socket:
    """Be the host of one short life; returns the worker's line, at whose end it ends."""
    hello = HelloHead(token=token.hex(), instance_id="practice").as_head()
    control.sendall(frames.encode(frames.HELLO, 1, hello))
    data, fds, _, _ = socket.recv_fds(control, _READ, 8)
    if len(fds) != 3 or not frames.FrameDecoder().feed(data):
        raise EOFError
    for fd in fds[1:]:
        os.close(fd)
    return socket.socket(fileno=fds[0])


def _until_asleep(pid: int) -> None:
    """The worker waits for its line."""
    for _ in range(1000):
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "S":
                return
        time.sleep(0.001)
    raise EOFError


def _play(control: socket.socket, line: socket.socket) -> None:
    """Init, and a first call up to its answer."""
    decoder = frames.FrameDecoder()
    control.sendall(frames.encode(frames.INIT, 3, _init().as_head()))
    while not decoder.feed(_some(control)):
        continue
    line.settimeout(TIMEOUT_S)
    line.sendall(call_line(b'{"name": "practice"}', b'{"request_id": "%b", "tenant": "x"}' % _ID.encode()))
    if not _some(line).startswith(b'{"output"'):
        raise EOFError


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(_READ)
    if not data:
        raise EOFError
    return data


def _init() -> InitHead:
    return InitHead(
        function=FunctionRef(_ID, "practice", 1, "default", "default"),
        instance_id=_ID,
        runtime="python",
        mode="persistent",
        handler="main.handler",
        entry="main.py",
        entry_kind="handler",
        env={"PRACTICE": "1"},
        memory_mb=128,
        timeout_s=30,
        concurrency=1,
        open_files=1024,
    )
