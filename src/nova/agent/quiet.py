"""The first process of an instance for as long as nothing is asked of it: it has started the worker, and waits.

Most instances never need more. Their host, which alone holds the other end of the control socket, loads the function and
calls it on the worker's own line, and in the end kills them. So as little code as possible runs here: each function of the
interpreter that does is memory which this process no longer shares with the one it was forked from. When something comes, a
frame other than Ping, a dead child, a connection to the guest API, it becomes the :class:`Supervisor`.
"""

import _signal  # type: ignore[import-not-found]  # see nova.agent.process
import _socket
import os
import select
import socket
from array import array
from collections.abc import Callable
from typing import Final, NoReturn

from nova.agent import environment, frames
from nova.agent.config import GUEST_PORT, AgentConfig
from nova.agent.control import VERSION
from nova.agent.messages import WelcomeHead
from nova.agent.process import Worker, set_dumpable
from nova.agent.supervisor import Started, Supervisor

_PING: Final = frames.QUIET_PING
_PONG: Final = frames.QUIET_PONG
_BACKLOG: Final = 128


def greeting(runtime: str, *, stands: bool) -> bytes:
    """What the agent says first, with the descriptors of its worker, if one ``stands``."""
    welcome = WelcomeHead(VERSION, (runtime,), boot_us=0, fds=3 if stands else 0)
    return frames.encode(frames.HELLO, 0, welcome.as_head())


def run(
    control: int,
    hello: bytes,
    start: Callable[[], Worker] | None,
    config: Callable[[], AgentConfig],
    guest_port: int = GUEST_PORT,
) -> NoReturn:
    """Serve the host on the descriptor ``control``, a connected stream socket that nobody else has the other end of.

    ``hello``: :func:`greeting`, made before the fork. ``start`` gives the standing worker, if there is one. ``config`` is asked
    for when it is needed. Never returns; exit codes are those of :func:`nova.agent.supervisor.run`.
    """
    code = 70
    try:
        started, poll = _begin(control, start, guest_port)
        sock = _socket.socket(fileno=control)
        sock.sendmsg([hello], [] if started.worker is None else [_rights(started.worker)])
        _wait(sock, poll)
        code = Supervisor(socket.socket(fileno=sock.detach()), config(), started).run()
    finally:
        os._exit(code)


def _rights(worker: Worker) -> tuple[int, int, "array[int]"]:
    return _socket.SOL_SOCKET, _socket.SCM_RIGHTS, array("i", worker.descriptors())


def _begin(control: int, start: Callable[[], Worker] | None, guest_port: int) -> tuple[Started, select.poll]:
    """The worker comes last: what this process writes to before it is forked, both share."""
    children, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in (_signal.SIGINT, _signal.SIGTERM):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.signal(_signal.SIGCHLD, _wake)
    server = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    server.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    server.bind((environment.GUEST_HOST, guest_port))
    server.listen(_BACKLOG)
    listener = server.detach()
    os.set_blocking(listener, False)
    poll = select.poll()
    for fd in (control, children, listener):
        poll.register(fd, select.POLLIN)
    set_dumpable(False)
    return Started(None if start is None else start(), children, listener), poll


def _wait(sock: _socket.socket, poll: select.poll) -> None:
    """Until there is something to do that has not been looked at yet."""
    control = sock.fileno()
    while True:
        for fd, _ in poll.poll():
            if fd != control or sock.recv(len(_PING) + 1, _socket.MSG_PEEK) != _PING:
                return
            sock.recv(len(_PING))
            sock.send(_PONG)


def _wake(_number: int, _frame: object) -> None:
    """See :func:`nova.agent.supervisor.run`."""
