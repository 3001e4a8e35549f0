"""The worker of a function's snapshot: it loads the function, serves nobody, and forks workers that do.

What one worker would notice of another rules a function out: threads, open files and sockets, child processes, shared
memory, files in ``/tmp``. All forks share the hash seed of strings and the layout of addresses; ``random``, NumPy's global
generator and OpenSSL are renewed in each.
"""

import gc
import json
import os
import socket
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any, Final, NoReturn

from nova.runtimes.python import answers, bootstrap, multiplex
from nova.runtimes.python.loading import become, load, renew, run_hook, settle
from nova.runtimes.python.resumed import take_over

MAX_DESCRIPTORS: Final = 8
_REQUEST: Final = 512


def main(
    fork: Callable[[list[int], Callable[[], NoReturn]], None],
    foresee: Callable[[Callable[[], None]], Callable[[], None]],
) -> NoReturn:
    """Load the function, then fork a worker for each message of the host.

    ``fork(descriptors, worker)`` has ``worker`` called in a new process in the place that the descriptors stand for, with
    the host's line on 3 and 4; the descriptors are closed here afterwards.

    ``foresee(work)`` gives what copies, in a fork, the memory that ``work`` would write to. What the function's own hook and
    handler write to is not foreseen: they run in instances that serve, alone.
    """
    bootstrap._warm_pages()
    init: dict[str, Any] = bootstrap.parse_init(bootstrap._read_line())
    current = bootstrap.Current()
    request_id = multiplex.request_id if init["concurrency"] > 1 else current.request_id
    try:
        become(init, request_id)
        began = time.monotonic_ns()
        function = load(init["handler"], lambda: bootstrap.init_context(init))
        import_us = (time.monotonic_ns() - began) // 1000
        run_hook(function.module, "before_snapshot")
        reason = obstacle()
    except BaseException as error:
        _leave(answers.of_exception(error, init["code_dir"]))
    if reason:
        _leave(answers.of_platform("NoSnapshot", reason))
    gc.collect()
    settle()
    bootstrap._flush()
    bootstrap._write(b'{"ready": {"concurrency": 1, "import_us": %d}}\n' % import_us)
    here = os.getcwd()
    have = foresee(lambda: _rehearse(init))

    def worker() -> NoReturn:
        os.chdir(here)
        have()
        own: dict[str, Any] = bootstrap.parse_init(bootstrap._read_line())
        try:
            take_over(init["env"], own["env"])
            renew()
            run_hook(function.module, "after_restore")
        except BaseException as error:
            _leave(answers.of_exception(error, init["code_dir"]))
        bootstrap._flush()
        bootstrap.serve(function, own, current, 0)

    while descriptors := _receive():
        fork(descriptors, worker)
        for fd in descriptors:
            os.close(fd)
    os._exit(0)


def _rehearse(init: dict[str, Any]) -> None:
    bootstrap.parse_init(json.dumps({"init": init}).encode())
    take_over(init["env"], dict(init["env"]))
    renew()
    bootstrap.rehearse_call(init["code_dir"])


def _leave(answer: bytes) -> NoReturn:
    bootstrap._flush()
    bootstrap._write(answer)
    os._exit(1)


def obstacle() -> str:
    """Why this process cannot be forked for several instances; empty when it can."""
    if threading.active_count() > 1:
        return f"{threading.active_count() - 1} threads run after loading"
    pid = os.fork()  # libraries with threads of their own (BLAS) end them before a fork and start them when needed
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    threads = len(os.listdir("/proc/self/task")) - 1
    if threads:
        return f"{threads} threads run after loading"
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if int(name) > bootstrap.RESULT_FD:
            return (
                "a socket is open after loading" if target.startswith("socket:") else f"{target} is open after loading"
            )
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        if children.read():
            return "a child process runs after loading"
    with open("/proc/self/maps") as maps:
        if any(line.split()[1].startswith("rw") and line.split()[1].endswith("s") for line in maps):
            return "memory is shared with other processes after loading"
    if os.listdir("/tmp"):
        return "there are files in /tmp after loading"
    return ""


def _receive() -> list[int]:
    """The descriptors of the next message; none at the end."""
    with socket.socket(fileno=os.dup(bootstrap.INPUT_FD)) as line:
        fds = array("i")
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * fds.itemsize)
        _data, ancillary, _flags, _ = line.recvmsg(_REQUEST, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, received in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(received[: len(received) - len(received) % fds.itemsize])
    return list(fds)
