"""One container with an agent inside, as long as it is there."""

import asyncio
import contextlib
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from nova.domain.call import StartSource
from nova.execution.backends.base import Channel, InstanceStats
from nova.execution.backends.docker.groups import Group
from nova.execution.backends.sandbox.network import Slot
from nova.execution.channel import DirectChannel


@dataclass(frozen=True, slots=True)
class Kind:
    """What must be equal for one template to serve."""

    runtime: str
    version: str
    online: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """``code``: the exit code of the first process, None where nobody knows."""

    code: int | None
    out_of_memory: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """One container that runs. It is an :class:`Instance` once it is claimed."""

    name: str
    kind: Kind
    ended: "asyncio.Future[Ended]"
    undo: AsyncExitStack
    """takes it apart, each step even if another fails"""
    container: str = ""
    pid: int = 0
    pidfd: int = -1
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    """the first process is; only where it can be seen"""
    group: Group | None = None
    slot: Slot | None = None
    ran_out: bool = False
    """the engine has told of memory that was used up"""
    link: DirectChannel = field(init=False)
    channel: Channel = field(init=False)
    instance_id: str = ""
    source: StartSource = "boot"
    runtime_us: int = 0
    born: float = field(default_factory=time.monotonic)
    ending: "asyncio.Task[None] | None" = None

    @property
    def out_of_memory(self) -> bool:
        told = self.ended.done() and self.ended.result().out_of_memory
        return told or self.ran_out or (self.group is not None and self.group.oom_kills() > 0)

    def stats(self) -> InstanceStats:
        return self.group.stats() if self.group is not None and not self.ended.done() else InstanceStats()

    def over(self, ended: Ended) -> None:
        if not self.ended.done():
            self.ended.set_result(ended)

    @property
    def gone(self) -> bool:
        """Whether the first process is dead, or cannot be seen."""
        return self.pidfd < 0 or not self._signal(0)

    def kill(self) -> bool:
        """SIGKILL to the first process; the kernel ends the rest. False when it cannot be seen."""
        if self.pidfd >= 0:
            self._signal(signal.SIGKILL)
        return self.pidfd >= 0

    def _signal(self, number: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)
            return True
        return False
