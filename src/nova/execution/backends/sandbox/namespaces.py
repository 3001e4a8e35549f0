"""What a fresh child does to itself before it runs anything for a guest. Each step is one-way.

Guest-side code: standard library only.
"""

import _socket
import fcntl
import functools
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from nova.execution.backends.sandbox import calls, kernel, mounts
from nova.execution.backends.sandbox.calls import Call

GUEST_UID = 65534
"""The only user and group that exist inside."""
INSTANCE_NAMESPACES = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
)
"""Created by the clone itself. A network namespace is added unless the child gets a prepared one; the control-group
namespace follows once the child is in its group, so that the group is its root."""
FIRST_FD = 3
"""The child's one descriptor above stdio; :data:`STATUS_FD` is the other until isolation is done."""
STATUS_FD = 4
MAX_FILE_BYTES = 16 << 30

_MOST_FDS = os.sysconf("SC_OPEN_MAX")
_SIOCSIFFLAGS = 0x8914
_LOOPBACK_UP = struct.pack("16sh22x", b"lo", 0x1 | 0x8)
"""IFF_UP and IFF_LOOPBACK"""


def enter_user_namespace() -> None:
    """As an ordinary user: become root of a user namespace, which may make the others."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def map_user(pid: int, uid: int) -> None:
    """Give the user namespace of ``pid`` its one user and group, both ``uid`` out here. Called by the parent."""
    # Without privilege over the outer namespace a group map needs setgroups denied; nobody inside may call it anyway.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{GUEST_UID} {uid} 1"),
        ("gid_map", f"{GUEST_UID} {uid} 1"),
    ):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)


def clone_beneath(user: int, pids: int, uid: int, child: Callable[[], NoReturn]) -> int:
    """Fork a child of the caller into new namespaces whose user and pid namespaces lie below ``user`` and ``pids``
    (descriptors), and give it its one user. Its user namespace is owned by ``uid``, so that processes of that user in
    ``user`` may enter it. Returns its pid out here. For root only. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def visitor() -> NoReturn:
        """In the namespaces above: the child is made from there."""
        pid = kernel.clone(INSTANCE_NAMESPACES | kernel.CLONE_NEWNET | kernel.CLONE_PARENT, child)
        outside = _outer_pid(os.pidfd_open(pid))
        map_user(outside, GUEST_UID)
        theirs.send(str(outside).encode())
        os._exit(0)

    def helper() -> NoReturn:
        try:
            kernel.act_as(uid)
            kernel.setns(user, kernel.CLONE_NEWUSER)
            kernel.setns(pids, kernel.CLONE_NEWPID)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
            # A pid namespace is made below the caller's own, and only children of this process are in the one entered.
            visiting = kernel.clone(kernel.CLONE_PARENT, lambda: _telling(theirs, visitor))
            theirs.send(f"visitor {visiting}".encode())
        except OSError as error:
            theirs.send(f"{error}".encode())
        os._exit(0)

    with ours:
        with theirs:
            helping = kernel.clone(0, helper)
        told = [ours.recv(512).decode()]
        if told[0]:
            told.append(ours.recv(512).decode())
    os.waitpid(helping, 0)
    for text in told:
        if text.startswith("visitor "):
            os.waitpid(int(text.removeprefix("visitor ")), 0)
    made = [int(text) for text in told if text.isdigit()]
    if not made:
        raise OSError(told[-1] or "the namespaces of the snapshot are gone")
    return made[0]


def _telling(sock: socket.socket, work: Callable[[], NoReturn]) -> NoReturn:
    """Do ``work``; what it fails with goes through ``sock``."""
    try:
        work()
    except OSError as error:
        sock.send(f"{error}".encode())
    os._exit(0)


def _outer_pid(pidfd: int) -> int:
    """The pid as the mounted ``/proc`` knows it."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


@functools.lru_cache(64)
def confinement(root: str, tmp_bytes: int, *, own_network: bool) -> Sequence[Call]:
    """What a child has to do, up to and including the loss of every privilege but loading the filter. ``root`` is where its
    root is mounted. To be made after :func:`join`."""
    return (
        calls.unshare(kernel.CLONE_NEWCGROUP),
        calls.hostname(b"nova"),
        *([("bringing lo up", loopback_up)] if own_network else []),
        # Still with the launcher's user, which the new namespace does not know: the way to the root may be closed to others.
        *mounts.entering(root, tmp_bytes),
        *calls.become(GUEST_UID),
        calls.umask(0o022),
    )


def join(files: Iterable[int]) -> None:
    """Be in a control group: see :meth:`Group.entry_files`. The child has one thread and moves itself: to move a process takes
    the kernel 14 ms, in which nobody on the host can fork."""
    for descriptor in files:
        os.write(descriptor, b"0")


def sealing(program: bytes) -> Sequence[Call]:
    """Drop all capabilities and load the filter: after this the child is as weak as the guest."""
    return (
        calls.limit(resource.RLIMIT_CORE, 0),
        calls.limit(resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        *calls.drop_capabilities(),
        calls.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1),
        # A second line only: the truth about a dead host is the end of file on the control socket.
        calls.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL),
        calls.load_seccomp(program),
    )


def loopback_up() -> int:
    """Bring up ``lo`` in the caller's network namespace; returns 0. Raises OSError."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
    fcntl.ioctl(sock, _SIOCSIFFLAGS, _LOOPBACK_UP)
    sock.close()
    return 0


def keep_only(descriptors: list[int]) -> None:
    """Renumber ``descriptors`` from 3 on in that order, point 0–2 at ``/dev/null`` and close everything else."""
    high = []
    for fd in descriptors:
        high.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64 + len(descriptors)))
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1, 2):
        os.dup2(null, number)
    number = FIRST_FD
    for fd in high:
        os.dup2(fd, number, False)
        number += 1
    os.closerange(number, _MOST_FDS)
