"""One instance that serves nobody, before any other: what its worker touches, those of later ones are given beforehand.

Runs in the zygote at its start. The practice place has namespaces of its own, and runs the platform's code alone.
Guest-side code: standard library only.
"""

import os
import shutil
import signal
import socket
import tempfile
import time
from typing import Final, NoReturn

from nova.agent import frames, pages, quiet
from nova.agent.config import AgentConfig, WorkerLaunch
from nova.agent.environment import worker_init
from nova.agent.messages import FunctionRef, InitHead
from nova.agent.pages import Pages
from nova.agent.process import Worker, start_worker
from nova.agent.runners import bootstrap, standing_main
from nova.agent.worker import call_line, init_line
from nova.execution.backends.sandbox import kernel, namespaces

TIMEOUT_S: Final = 5.0
"""For each answer of the practice instance."""
_CODE: Final = "def handler(event, context):\n    return {'seen': event, 'by': context.request_id}\n"
_ID: Final = "00000000-0000-0000-0000-000000000000"
_READ: Final = 1 << 16


def practise(module: str) -> None:
    """Learn what a worker (``module``) touches up to the first answer; all later forks of this process have it beforehand.
    Where it cannot be seen they go on to rehearse."""
    folder = tempfile.mkdtemp(prefix="nova-practice-", dir="/tmp")
    worker = bootstrap(module)
    # Nothing is had beforehand in practice: it must touch what others will, and no more.
    worker.replace_rehearsal(_nothing)
    try:
        os.chmod(folder, 0o755)
        with open(f"{folder}/main.py", "w") as file:
            file.write(_CODE)
        touched = watch(module, folder)
    except (OSError, frames.FrameError, EOFError, ValueError):
        worker.replace_rehearsal(None)
    else:
        worker.replace_rehearsal(touched.have)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _nothing() -> None:
    """As a rehearsal: none."""


def watch(module: str, folder: str) -> Pages:
    """What the worker of a new instance touches that runs the code in ``folder``, after it has begun to wait.

    Raises OSError, EOFError, FrameError or ValueError when that cannot be seen.
    """
    known = pages.mappings()
    ours, theirs = socket.socketpair()
    config = AgentConfig(b"", "practice", "python", WorkerLaunch("fork", module), folder, api_digest="practice")
    hello = quiet.greeting(config.runtime, stands=True)

    def start() -> Worker:
        """Beside a child that only keeps what it was forked with: a page that the worker has to itself is then one that it
        wrote to, and not one that the others have left to it."""
        if os.fork() == 0:
            while True:
                signal.pause()
        return start_worker(0, standing_main(config))

    def main() -> NoReturn:
        ours.close()
        namespaces.loopback_up()
        quiet.run(theirs.detach(), hello, start, lambda: config)

    with ours:
        with theirs:
            pid = kernel.clone(namespaces.INSTANCE_NAMESPACES | kernel.CLONE_NEWNET, main)
        try:
            ours.settimeout(TIMEOUT_S)
            with _greeted(ours) as line:
                with open(f"/proc/{pid}/task/{pid}/children") as children:
                    _witness, worker = map(int, children.read().split())
                _until_asleep(worker)
                # What it had when it began to wait was touched before anybody waited for it, or left by others.
                before = pages.touched(worker, known).written
                _play(line, config)
                after = pages.touched(worker, known)
            after.written = pages.less(after.written, before)
            return after
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _greeted(control: socket.socket) -> socket.socket:
    """Be the host of one short life; returns the worker's line, at whose end it ends."""
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


def _play(line: socket.socket, config: AgentConfig) -> None:
    """Init, and a first call up to its answer."""
    line.settimeout(TIMEOUT_S)
    line.sendall(init_line(worker_init(config, _init(), "practice")))
    if not _some(line).startswith(b'{"ready"'):
        raise EOFError
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
