"""An agent whose first worker was forked elsewhere: from an instance that has the function loaded already.

The worker arrives on a socket: this side sends the descriptors that it is to have, it answers with its pid in here when it
has become this process's child. From then on it is a standing worker like any other, and Init makes it serve.
"""

import array
import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from nova.agent.config import AgentConfig
from nova.agent.process import Worker
from nova.agent.supervisor import Supervisor

_GONE_S: Final = 1.0
"""At most; then the worker serves all the same."""


def run(control: socket.socket, config: AgentConfig, donor: socket.socket, entries: Sequence[int]) -> NoReturn:
    """As :func:`nova.agent.supervisor.run`. ``entries``: files to which the worker writes ``0`` to come under the limits
    of this place."""
    code = 70
    try:
        code = Heir(control, config, donor, entries).run()
    finally:
        os._exit(code)


class Heir(Supervisor):
    def __init__(
        self, control: socket.socket, config: AgentConfig, donor: socket.socket, entries: Sequence[int]
    ) -> None:
        super().__init__(control, config)
        self._donor: socket.socket | None = donor
        self._entries = entries

    def _start(self, main: Callable[[], NoReturn]) -> Worker:
        if self._donor is None:
            return super()._start(main)
        donor, self._donor = self._donor, None
        with donor:
            worker = receive_worker(donor, self._next_worker, self._entries)
        self._next_worker += 1
        self._workers[worker.number] = worker
        return worker


def receive_worker(donor: socket.socket, number: int, entries: Sequence[int]) -> Worker:
    """Wait for the worker; ``entries`` are closed. Raises OSError when it does not come."""
    line, theirs = socket.socketpair()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    given = [theirs.fileno(), out_write, err_write, *entries]
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))
    donor.sendmsg([b"worker"], [rights])
    theirs.close()
    for fd in given[1:]:
        os.close(fd)
    told = donor.recv(512).decode()
    pid, *ways = map(int, told.split()) if told.replace(" ", "").isdigit() else [0]
    for forker in ways:
        _gone(forker)
    if pid not in _children():
        raise OSError(f"no worker came: {told or 'its fork ended early'}")
    line.setblocking(False)
    os.set_blocking(out_read, False)
    os.set_blocking(err_read, False)
    return Worker(number, pid, line, out_read, err_read)


def _gone(pid: int) -> None:
    """Wait until a process that is ending cannot be seen any more. It is a child of this one, or of the first process of the
    place that it came from, which buries it in its own time."""
    until = time.monotonic() + _GONE_S
    while time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        except PermissionError:
            pass  # it is there
        time.sleep(0.0002)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [int(pid) for pid in children.read().split()]
