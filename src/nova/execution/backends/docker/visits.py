"""Mounting into a container that runs already: how code appears at ``/code`` of one that was started before its code was known.

The mount is made from the host's path, detached, and attached in the container's mount namespace by a thread that goes
there and comes back. It works whatever propagation the engine's mounts have, and costs a fraction of a millisecond.
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from nova.execution.backends.docker.containers import Bind
from nova.execution.backends.sandbox import kernel
from nova.execution.backends.sandbox.mounts import detached, tmp_size

_CLONE_FS: Final = 0x200
_TAME: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_PARENTS: Final = ("/layers", "/mnt")
"""Folders of every image in which places for mounts are made."""
_PARENT_SIZE: Final = "mode=755,size=64k,nr_inodes=64"


class Visits:
    """One thread for all containers. Needs root and Linux 5.12."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nova-docker-visits")
        self._home = -1

    async def start(self) -> None:
        """Raises OSError where this host, or this user, cannot do it."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    def _start(self) -> None:
        # A thread that shares its root and working folder with others may not change its mount namespace.
        kernel.unshare(_CLONE_FS)
        self._home = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        kernel.setns(self._home, kernel.CLONE_NEWNS)
        os.close(detached("/etc", "ro"))

    async def mount(self, pid: int, binds: Sequence[Bind], tmp_mb: int | None) -> None:
        """Show host paths in the container whose first process is ``pid``, which the caller keeps from ending unnoticed.

        Their places exist, or lie below ``/layers`` or ``/mnt``, which then hold nothing else. ``tmp_mb``: let its ``/tmp``
        hold so much from now on. Raises OSError.
        """
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._visit, pid, binds, tmp_mb)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    def _visit(self, pid: int, binds: Sequence[Bind], tmp_mb: int | None) -> None:
        with contextlib.ExitStack() as undo:
            there = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, there)
            trees: list[tuple[int, str]] = []
            for bind in binds:
                trees.append((detached(str(bind.source), "ro" if bind.read_only else "rw"), bind.target))
                undo.callback(os.close, trees[-1][0])
            kernel.setns(there, kernel.CLONE_NEWNS)
            try:
                _attach(trees)
                if tmp_mb is not None:
                    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_REMOUNT | _TAME, tmp_size(tmp_mb << 20))
            finally:
                kernel.setns(self._home, kernel.CLONE_NEWNS)

    def close(self) -> None:
        self._thread.shutdown()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1


def _attach(trees: Sequence[tuple[int, str]]) -> None:
    """In the container's mount namespace."""
    parents = [parent for parent in _PARENTS if any(target.startswith(f"{parent}/") for _, target in trees)]
    for parent in parents:
        kernel.mount("tmpfs", parent, "tmpfs", _TAME | kernel.MS_NOEXEC, _PARENT_SIZE)
    for tree, target in trees:
        if target.startswith(tuple(f"{parent}/" for parent in parents)):
            os.makedirs(target, 0o755, exist_ok=True)
        kernel.move_mount(tree, target)
    for parent in parents:
        flags = _TAME | kernel.MS_NOEXEC | kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY
        kernel.mount("none", parent, None, flags)
