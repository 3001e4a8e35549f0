"""The descriptors that one machine is wired with. QEMU inherits them, so it needs no way to any file or socket by name."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nova.execution.images.kernel import Kernel


class Wiring:
    """Two socket pairs, the kernel and every drive, open. At the end whatever nobody has taken is closed."""

    def __init__(
        self, kernel: Kernel, drives: Sequence[Path], state: Path | None = None, tap: int | None = None
    ) -> None:
        """``drives``: read-only, the root first. ``state``: what the machine goes on from. ``tap``: a descriptor of its network's
        end, which belongs to this from here on. Raises OSError; then nothing is open."""
        self._given: list[int] = []
        """what the process gets"""
        self.tap_fd = None if tap is None else self._give(tap)
        self.monitor, monitor = socket.socketpair()
        self.agent, agent = socket.socketpair()
        try:
            self.monitor_fd, self.agent_fd = self._give(monitor.detach()), self._give(agent.detach())
            self.image_fd, self.initrd_fd = self._open(kernel.vmlinux), self._open(kernel.initrd)
            self.drive_fds = [self._open(path) for path in drives]
            self.state_fd = None if state is None else self._open(state)
        except OSError:
            self.close()
            raise

    def _open(self, path: Path) -> int:
        return self._give(os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def _give(self, descriptor: int) -> int:
        self._given.append(descriptor)
        return descriptor

    @property
    def given(self) -> Sequence[int]:
        return tuple(self._given)

    def started(self) -> None:
        """The process has them: its end is to be the end of both connections."""
        while self._given:
            os.close(self._given.pop())

    def take_agent(self) -> socket.socket:
        """Our end of the agent's port; it belongs to the caller."""
        return socket.socket(fileno=self.agent.detach())

    def take_monitor(self) -> socket.socket:
        """Our end of the monitor; it belongs to the caller."""
        return socket.socket(fileno=self.monitor.detach())

    def close(self) -> None:
        self.started()
        self.monitor.close()
        self.agent.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
