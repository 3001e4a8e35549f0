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
from nova.execution.backends.sandbox.mounts import attach_inside, detached

_CLONE_FS: Final = 0x200


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
        try:
            texts = [(str(source), target) for source, target in binds]
            attach_inside(there, self._home, texts, None if tmp_mb is None else tmp_mb << 20)
        finally:
            os.close(there)

    def close(self) -> None:
        self._thread.shutdown()
        if self._home >= 0:
            os.close(self._home)
            self._home = -1
