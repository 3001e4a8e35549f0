"""What every process of the platform has in common: it starts whole or not at all, serves until a signal, and ends in order."""

import asyncio
import gc
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable

from nova.config_sources import Loaded
from nova.service import ServiceGroup
from nova.telemetry import set_level

Progress = Callable[[str], None]
_GC_THRESHOLDS = (20_000, 50, 100)
"""A call leaves no cycles behind, so looking for them every 700 allocations is time taken from calls."""


class Process(ABC):
    """:meth:`start`, then :meth:`wait` for a signal, then :meth:`close`."""

    def __init__(self, loaded: Loaded, *, on_progress: Progress = lambda _step: None) -> None:
        self.loaded = loaded
        self.settings = loaded.settings
        self.services = ServiceGroup()
        self.say = on_progress
        self._leaving = asyncio.Event()

    async def start(self) -> None:
        """Everything up, or nothing left behind. Raises DataDirectoryBusy, OSError, NovaError or RuntimeError."""
        # from the first moment on: a process that is told to go while it gets ready ends in order, right after
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.leave)
        await self.services.__aenter__()
        try:
            await self.compose()
        except BaseException:
            await self.close()
            raise
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)

    @abstractmethod
    async def compose(self) -> None:
        """Build and start the services of this process, in order."""

    async def wait(self) -> None:
        """Until SIGINT, SIGTERM, or a successor that has taken over."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.leave)
        await self._leaving.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def leave(self) -> None:
        """Let :meth:`wait` return: this process has done its part."""
        self._leaving.set()

    async def close(self) -> None:
        """End what :meth:`start` began, in reverse. Idempotent."""
        await self.services.__aexit__(None, None, None)

    def settings_changed(self, keys: list[str]) -> None:
        """Settings that act beyond the section object that everybody reads."""
        if "logging.level" in keys:
            set_level(self.settings.log_level)
