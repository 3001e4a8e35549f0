"""A process that is a machine: its end, by whoever asks for it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from typing import Any


class MachineProcess:
    """Owns a child process from its start on."""

    def __init__(self, process: asyncio.subprocess.Process, reading: Coroutine[Any, Any, None]) -> None:
        """``reading``: follows what the process says until that is closed."""
        self.ended = asyncio.ensure_future(process.wait())
        self._process = process
        self._pidfd = _pidfd(process.pid)
        self._reading = asyncio.ensure_future(reading)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; harmless when it is dead."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait until it is dead. Idempotent."""
        self.kill()
        await asyncio.shield(self.ended)
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1  # it has ended already
