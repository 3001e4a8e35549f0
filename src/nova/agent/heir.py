"""A first worker that was forked elsewhere: from an instance that has the function loaded already.

The worker arrives on a socket: this side sends the descriptors that it is to have, it answers with its pid in here when it
has become this process's child. From then on it is a standing worker like any other, and its init line makes it serve.
"""

import array
import contextlib
import os
import socket
import time
from collections.abc import Sequence
from typing import Final

from nova.agent.process import Worker, worker_ends

_GONE_S: Final = 1.0
"""At most; then the worker serves all the same."""


def receive_worker(donor: socket.socket, entries: Sequence[int]) -> Worker:
    """Wait for the worker. ``entries``: files to which it writes ``0`` to come under the limits of this place; they are
    closed. Raises OSError when it does not come."""
    ours, theirs = worker_ends()
    given = [*theirs, *entries]
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))
    donor.sendmsg([b"worker"], [rights])
    for fd in given:
        os.close(fd)
    told = donor.recv(512).decode()
    pid, *ways = map(int, told.split()) if told.replace(" ", "").isdigit() else [0]
    for forker in ways:
        _gone(forker)
    if pid not in _children():
        raise OSError(f"no worker came: {told or 'its fork ended early'}")
    return Worker(0, pid, *ours)


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
