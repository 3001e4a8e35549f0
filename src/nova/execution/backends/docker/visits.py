"""Mounting into a container that runs already: how code appears at ``/code`` of one that was started before its code was known.

The mount is made from the host's path, detached, and attached in the container's mount namespace by a thread that goes
there and comes back. It works whatever propagation the engine's mounts have, and costs a fraction of a millisecond.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from nova.execution.backends.sandbox import kernel

_CLONE_FS: Final = 0x200
_TMP_FLAGS: Final = kernel.MS_NOSUID | kernel.MS_NODEV
_READ_ONLY: Final = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV


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
        os.close(_detached("/", _READ_ONLY))

    async def mount(self, pid: int, binds: Sequence[tuple[Path, str]], tmp_mb: int | None) -> None:
        """Show host paths, read-only, at places that exist in the container whose first process is ``pid``, which the
        caller keeps from ending unnoticed; ``tmp_mb``: let its ``/tmp`` hold so much from now on. Raises OSError."""
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._visit, pid, binds, tmp_mb)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    def _visit(self, pid: int, binds: Sequence[tuple[Path, str]], tmp_mb: int | None) -> None:
        there = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        trees: list[tuple[int, str]] = []
        try:
            for source, target in binds:
                trees.append((_detached(str(source), _READ_ONLY), target))
            kernel.setns(there, kernel.CLONE_NEWNS)
            try:
                for tree, target in trees:
                    kernel.move_mount(tree, target)
                if tmp_mb is not None:
                    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_REMOUNT | _TMP_FLAGS, f"size={tmp_mb}m")
            finally:
                kernel.setns(self._home, kernel.CLONE_NEWNS)
        finally:
            os.close(there)
            for tree, _ in trees:
                os.close(tree)

    def close(self) -> None:
        self._thread.shutdown()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1


def _detached(source: str, attributes: int) -> int:
    tree = kernel.open_tree(source)
    try:
        kernel.mount_setattr(tree, "", attributes)
    except OSError:
        os.close(tree)
        raise
    return tree
