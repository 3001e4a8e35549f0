"""Making and ending processes: what Linux offers and the standard library does not wrap, and the start of a worker."""

import _signal  # type: ignore[import-not-found]  # what ``signal`` wraps: its enumerations are memory that every fork would touch
import _socket
import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from nova.agent import at_fork
from nova.agent.messages import GuestError, end_error

_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_SPARE_FD: Final = 64
"""Descriptors are moved above this number before 0–4 are laid out, so that no source is overwritten."""
_MOST_FDS: Final = os.sysconf("SC_OPEN_MAX")

_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_prctl.restype = ctypes.c_int


def _set(option: int, value: int) -> None:
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def set_dumpable(dumpable: bool) -> None:
    """Undumpable, a process's ``/proc`` entry is closed to others of the same user id."""
    _set(_PR_SET_DUMPABLE, int(dumpable))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (PID 1 of a namespace is that anyway)."""
    _set(_PR_SET_CHILD_SUBREAPER, 1)


@dataclass(slots=True)
class Worker:
    """A started worker and this side's descriptors: its line socket, and the read ends of its stdout and stderr."""

    number: int
    pid: int
    line: int
    stdout: int
    stderr: int

    def descriptors(self) -> tuple[int, int, int]:
        return self.line, self.stdout, self.stderr

    def copy(self) -> "Worker":
        """The same worker with descriptors of its own."""
        return Worker(self.number, self.pid, *map(os.dup, self.descriptors()))

    def close(self) -> None:
        """Forget the descriptors; the host, if it has copies, drives the worker alone from here on."""
        if self.line >= 0:
            for fd in self.descriptors():
                os.close(fd)
            self.line = -1

    def signal(self, number: int) -> None:
        """Signal the worker and its process group."""
        for kill in (os.kill, os.killpg):
            with contextlib.suppress(ProcessLookupError):
                kill(self.pid, number)


def start_worker(number: int, main: Callable[[], NoReturn]) -> Worker:
    """Fork a worker: its own session, descriptors 0–4 as the protocol says and no other, then ``main``."""
    ours, theirs = worker_ends()
    pid = os.fork()
    if pid == 0:
        _in_child(theirs, main)
    for fd in theirs:
        os.close(fd)
    return Worker(number, pid, *ours)


def worker_ends() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The descriptors of a worker to be, line, stdout and stderr: this side's, which do not block, and its own."""
    line, their_line = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
    stdout, their_stdout = os.pipe()
    stderr, their_stderr = os.pipe()
    ours = line.detach(), stdout, stderr
    for fd in ours:
        os.set_blocking(fd, False)
    return ours, (their_line.detach(), their_stdout, their_stderr)


def _in_child(descriptors: tuple[int, int, int], main: Callable[[], NoReturn]) -> NoReturn:
    """What runs here is the first thing that a worker does, each time: every function more is memory that it does not share."""
    try:
        os.setsid()
        line, stdout, stderr = descriptors
        lay_out({0: os.open("/dev/null", os.O_RDONLY), 1: stdout, 2: stderr, 3: line, 4: line})
        os.closerange(5, _MOST_FDS)
        default_signals()
        set_dumpable(True)
        at_fork.resume()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _go_first()
        main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _go_first() -> None:
    """Where the whole host runs out of memory. A hint to the kernel, not a limit: where /proc is closed the limit still holds."""
    try:
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, b"1000")
        os.close(score)
    except OSError:
        return


def lay_out(wanted: dict[int, int]) -> None:
    """Make each descriptor ``wanted[n]`` also descriptor ``n``; 0–2 are inherited over exec, the others are not."""
    spare = []
    for target in wanted:
        spare.append(fcntl.fcntl(wanted[target], fcntl.F_DUPFD_CLOEXEC, _SPARE_FD))
    for target in wanted:
        source = spare.pop(0)
        os.dup2(source, target, target <= 2)
        os.close(source)


def default_signals() -> None:
    """Undo what the agent set for itself."""
    _signal.set_wakeup_fd(-1)
    for number in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, _signal.SIG_DFL)


def exec_program(argv: Iterable[str], env: Mapping[str, str], inherit: Iterable[int] = (3, 4)) -> NoReturn:
    """Replace this process, handing on 0–2 and ``inherit``. On failure: the reason on stderr, exit code 127."""
    arguments = list(argv)
    for fd in inherit:
        os.set_inheritable(fd, True)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execve(arguments[0], arguments, env)
    except OSError as error:
        os.write(2, f"{arguments[0]}: {error.strerror}\n".encode())
    os._exit(127)


def start_program(argv: Iterable[str], env: Mapping[str, str], cwd: str, fds: dict[int, int]) -> int:
    """Fork and exec a program in a session of its own with exactly the descriptors ``fds``; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        lay_out(fds)
        for fd in (3, 4):
            if fd not in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        os.closerange(5, _MOST_FDS)
        os.chdir(cwd)
        exec_program(argv, env, [fd for fd in fds if fd > 2])
    finally:
        os._exit(126)


def set_open_files(pid: int, limit: int) -> None:
    """Limit the descriptors of a running process (0 = this one), never above its hard limit."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (value, value))


def kill_children(spare: Collection[int] = ()) -> None:
    """SIGKILL and reap every child of this process but ``spare`` until none is left; adopted orphans are children too."""
    own = f"/proc/self/task/{os.getpid()}/children"
    while True:
        with open(own) as children:
            pids = [pid for pid in map(int, children.read().split()) if pid not in spare]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def exit_error(status: int) -> GuestError:
    """What the end of a process (its wait status) means for who was waiting for its answer."""
    code = os.waitstatus_to_exitcode(status)
    return end_error(code if code >= 0 else None, -code)


def end_like(status: int) -> NoReturn:
    """End this process the way a child ended (its wait status): same exit code or same signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
