"""The worker of a snapshot in the sandbox: its forks enter places that the launcher has prepared below its own.

A place's user namespace is owned by this worker's user, so a fork that enters it has every capability in there and nowhere
else; it drops them and loads the ordinary filter before anything of the user's runs in it. The filter here allows
``setns`` and takes away what those capabilities could reach meanwhile (:func:`seccomp.build_filter`).
Guest-side code: standard library only.
"""

import os
import select
import socket
from array import array
from collections.abc import Callable
from typing import Final, NoReturn

from nova.agent import pages
from nova.agent.process import lay_out, set_dumpable
from nova.execution.backends.sandbox import calls, kernel
from nova.execution.backends.sandbox.calls import Call
from nova.execution.backends.sandbox.seccomp import build_filter
from nova.runtimes.python import sealed

_KINDS: Final = (
    kernel.CLONE_NEWUSER,
    kernel.CLONE_NEWNS,
    kernel.CLONE_NEWPID,
    kernel.CLONE_NEWNET,
    kernel.CLONE_NEWIPC,
    kernel.CLONE_NEWUTS,
    kernel.CLONE_NEWCGROUP,
)
"""In the order of the launcher's ``ENTERED``."""
_DONOR_FD: Final = 5
_MAX_DESCRIPTORS: Final = 16

_weakening: list[Call] = []


def preload() -> None:
    """Nothing that the bootstrap does not load."""


def rehearse() -> None:
    _weakening[:] = [*calls.drop_capabilities(), calls.load_seccomp(build_filter())]


def prepare() -> None:
    """Nothing that the bootstrap does not do."""


def replace_rehearsal(have: Callable[[], None] | None) -> None:
    """Nothing: until it is loaded this worker is the bootstrap's."""


def main() -> NoReturn:
    sealed.main(_fork, lambda work: pages.of_fork(work).have)


def _fork(descriptors: list[int], worker: Callable[[], NoReturn]) -> None:
    """``descriptors``: the socket to the place's agent, then its namespaces. Failures are told on that socket."""
    own_pid = os.getpid()
    os.waitpid(kernel.fork_bare(lambda: _enter(descriptors, own_pid, worker)), 0)


def _enter(descriptors: list[int], own_pid: int, worker: Callable[[], NoReturn]) -> NoReturn:
    """In a fork: be in the place. Its pid namespace holds only children of whoever entered it, so there is a next one."""
    agent = socket.socket(fileno=descriptors[0])
    try:
        for fd, kind in zip(descriptors[1:], _KINDS, strict=True):
            kernel.setns(fd, kind)
        kernel.fork_bare(lambda: _arrive(agent, own_pid, worker))
    except OSError as error:
        agent.send(f"error: {error}".encode())
    os._exit(0)


def _arrive(agent: socket.socket, own_pid: int, worker: Callable[[], NoReturn]) -> NoReturn:
    """Inside, still with every capability: come under the place's limits, become weak, and fork the worker, which the
    agent inherits when this process ends."""
    try:
        line, stdout, stderr, *entries = _receive(agent)
        for fd in entries:
            os.write(fd, b"0")
        calls.make(_weakening)
        ways = [os.getpid()]
        if os.fork() == 0:
            if os.getpid() == own_pid:  # OpenSSL tells forks apart by their pid
                ways.append(own_pid)
                if os.fork():
                    os._exit(0)
            _settle(agent, line, stdout, stderr, ways)
            worker()
    except OSError as error:
        agent.send(f"error: {error}".encode())
    os._exit(0)


def _settle(agent: socket.socket, line: int, stdout: int, stderr: int, ways: list[int]) -> None:
    """Have the descriptors of a worker and no other, be the agent's child and tell it. ``ways``: the processes in here that
    this one comes from, which nobody shall see when it serves."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    lay_out({0: null, 1: stdout, 2: stderr, 3: line, 4: line, _DONOR_FD: agent.fileno()})
    os.closerange(_DONOR_FD + 1, os.sysconf("SC_OPEN_MAX"))
    set_dumpable(True)
    _wait_for_adoption()
    os.write(_DONOR_FD, " ".join(map(str, [os.getpid(), *ways])).encode())
    os.close(_DONOR_FD)
    agent.detach()


def _wait_for_adoption() -> None:
    """Until the process that forked this one is dead: then the first process of this place is the parent."""
    try:
        parent = os.pidfd_open(os.getppid())
    except ProcessLookupError:
        return
    if os.getppid() != 1:
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        poll.poll()
    os.close(parent)


def _receive(agent: socket.socket) -> list[int]:
    fds = array("i")
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * fds.itemsize)
    _data, ancillary, _flags, _ = agent.recvmsg(64, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, received in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(received[: len(received) - len(received) % fds.itemsize])
    return list(fds)
