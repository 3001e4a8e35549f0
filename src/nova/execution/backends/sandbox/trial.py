"""Tries, in a process of its own, what the launcher will need: prints ``ok`` or which step failed and why.

    python -I -S trial.py <source root>

Guest-side code: standard library only.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import NoReturn, TypeVar

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

from nova.execution.backends.sandbox import calls, kernel, mounts, namespaces
from nova.execution.backends.sandbox.seccomp import build_filter

T = TypeVar("T")


class StepFailed(Exception):
    """The message names the step and the kernel's reason."""


def attempt(root: str) -> None:
    """Make one confined child with its root at the empty directory ``root``. Raises StepFailed."""
    if os.getuid() != 0:
        _step("making a user namespace", namespaces.enter_user_namespace)
    _step("making a mount namespace", mounts.private_namespace)
    plan = mounts.RootPlan(
        "trial", directories=("/proc", "/tmp"), binds=(("/usr", "/usr", "ro"), ("/dev/null", "/dev/null", "dev"))
    )
    place = f"{root}/trial"
    _step("building a root directory", lambda: mounts.build_root(plan, place))
    answer, report = os.pipe()
    go_read, go_write = os.pipe()

    def child() -> NoReturn:
        os.read(go_read, 1)
        try:
            _step("confining a process", lambda: calls.make(namespaces.confinement(place, 1 << 20, own_network=True)))
            _step("loading a system-call filter", lambda: calls.make(namespaces.sealing(build_filter())))
            os.write(report, b"ok")
        except StepFailed as failure:
            os.write(report, str(failure).encode())
        os._exit(0)

    flags = namespaces.INSTANCE_NAMESPACES | kernel.CLONE_NEWNET
    pid = _step("making the namespaces of an instance", lambda: kernel.clone(flags, child))
    os.close(report)
    try:
        _step("mapping a user", lambda: namespaces.map_user(pid, os.getuid()))
    finally:
        os.write(go_write, b"g")
    text = os.read(answer, 4096).decode()
    os.waitpid(pid, 0)
    if text != "ok":
        raise StepFailed(text or "the child died")


def _step(name: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except OSError as error:
        raise StepFailed(f"{name} failed: {error.strerror or error}") from error


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nova-trial-", dir="/tmp") as root:
        worker = os.fork()
        if worker == 0:
            # The mounts made here end with this process, so that the directory can be removed.
            try:
                attempt(root)
                print("ok", flush=True)
            except StepFailed as failure:
                print(failure, flush=True)
            os._exit(0)
        os.waitpid(worker, 0)


if __name__ == "__main__":
    main()
