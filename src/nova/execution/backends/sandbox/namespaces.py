"""What a fresh child does to itself before it runs anything for a guest. Each step is one-way.

Guest-side code: standard library only.
"""

import fcntl
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from nova.execution.backends.sandbox import kernel, mounts

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

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


@dataclass(frozen=True, slots=True)
class Confinement:
    """How to confine one child. ``root`` is where its root is mounted.

    ``join_files``: see :meth:`Group.entry_files`. The child has one thread and moves itself: to move a process takes the
    kernel 14 ms, in which nobody on the host can fork.
    """

    root: str
    tmp_bytes: int
    own_network: bool
    join_files: tuple[int, ...] = ()


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


def confine(plan: Confinement) -> None:
    """Everything up to and including the loss of every privilege but loading the filter. Called in the child."""
    for descriptor in plan.join_files:
        os.write(descriptor, b"0")
    kernel.unshare(kernel.CLONE_NEWCGROUP)
    socket.sethostname("nova")
    if plan.own_network:
        loopback_up()
    # Still with the launcher's user, which the new namespace does not know: the way to the root may be closed to others.
    mounts.enter_root(plan.root, plan.tmp_bytes)
    os.setresgid(GUEST_UID, GUEST_UID, GUEST_UID)
    os.setresuid(GUEST_UID, GUEST_UID, GUEST_UID)
    os.umask(0o022)


def seal(program: bytes) -> None:
    """Drop all capabilities and load the filter: after this the child is as weak as the guest."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    # A second line only: the truth about a dead host is the end of file on the control socket.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.load_seccomp(program)


def loopback_up() -> None:
    """Bring up ``lo`` in the caller's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("h", request, 16)[0]
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)


def keep_only(descriptors: list[int]) -> None:
    """Renumber ``descriptors`` from 3 on in that order, point 0–2 at ``/dev/null`` and close everything else."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64 + len(descriptors)) for fd in descriptors]
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(null, number)
    for number, fd in enumerate(high, start=FIRST_FD):
        os.dup2(fd, number, inheritable=False)
    kernel.close_fds_from(FIRST_FD + len(descriptors))
