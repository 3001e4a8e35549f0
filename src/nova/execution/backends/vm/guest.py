"""A machine with its agent: what an instance is to the rest of the platform."""

import asyncio
import contextlib
import hashlib
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar

from nova.agent.messages import PlaceHead, ThawHead
from nova.domain.call import StartSource
from nova.errors import NovaError
from nova.execution.backends.base import Channel, InstanceSpec, InstanceStats, SnapshotRefused
from nova.execution.backends.sandbox.cgroups import Group
from nova.execution.channel import DirectChannel, FreezeRefused
from nova.execution.channel_control import ControlLost
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_ends import DeathCause

_OUT_OF_MEMORY: Final = b"ut of memory: Killed process"
"""What a guest's kernel says on its console; its workers cannot write there."""
_SEED_BYTES: Final = 64
_LAST_WORDS_S: Final = 0.2


class Console(Protocol):
    def tail(self) -> bytes: ...

    def last_words(self) -> str: ...


class Machine(Protocol):
    """The process that is the machine."""

    @property
    def ended(self) -> "asyncio.Future[int]": ...

    @property
    def console(self) -> Console: ...

    def kill(self) -> None: ...

    async def end(self) -> None: ...


M = TypeVar("M", bound=Machine)


@dataclass(slots=True, eq=False)
class Guest(Generic[M]):
    """An :class:`Instance`. Whatever it has is given back by ``undo``, last taken first."""

    instance_id: str
    spec: InstanceSpec
    machine: M
    group: Group
    undo: contextlib.AsyncExitStack
    init_timeout_s: float = 10.0
    source: StartSource = "boot"
    runtime_us: int = 0
    link: DirectChannel = field(init=False)
    channel: Channel = field(init=False)
    born: float = field(default_factory=time.monotonic)

    async def greet(
        self,
        reach: Callable[[], Awaitable[socket.socket]],
        token: bytes,
        name: str,
        deadlines: Deadlines,
        limit_s: float,
    ) -> None:
        """Connect to the agent that calls itself ``name``. ``reach`` gives a control socket that leads to it, as
        :meth:`DirectChannel.connect` takes it, however long that takes. Raises NovaError ``dependency_unavailable`` when the
        agent is not there in ``limit_s`` seconds, or the machine ends before."""
        began = time.monotonic()
        connecting = asyncio.ensure_future(self._connect(reach, token, name, deadlines))
        try:
            first: set[asyncio.Future[Any]] = {connecting, self.machine.ended}
            await asyncio.wait(first, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise self._unreached(limit_s)
            self.link = self.channel = await connecting
        except (ControlLost, OSError, TimeoutError) as error:
            await asyncio.wait({self.machine.ended}, timeout=_LAST_WORDS_S)
            raise NovaError(
                "dependency_unavailable",
                f"the guest's agent did not answer: {error}; {self.machine.console.last_words()}",
            ) from error
        finally:
            connecting.add_done_callback(self._unwanted)
            connecting.cancel()
        self.runtime_us = int((time.monotonic() - began) * 1e6)

    async def _connect(
        self, reach: Callable[[], Awaitable[socket.socket]], token: bytes, name: str, deadlines: Deadlines
    ) -> DirectChannel:
        return await DirectChannel.connect(
            await reach(),
            token,
            name,
            kill=self.machine.kill,
            death_cause=self.death_cause,
            deadlines=deadlines,
            init_timeout_s=self.init_timeout_s,
        )

    def _unwanted(self, connecting: "asyncio.Future[DirectChannel]") -> None:
        """Somebody stopped waiting just when the agent answered."""
        if not connecting.cancelled() and connecting.exception() is None and not hasattr(self, "link"):
            connecting.result().close()

    def _unreached(self, limit_s: float) -> NovaError:
        if self.machine.ended.done():
            text = f"the machine ended before its agent was there: {self.machine.console.last_words()}"
        else:
            text = f"the guest did not reach its agent within {limit_s:g} s"
        return NovaError("dependency_unavailable", text)

    async def freeze(self) -> None:
        """Have the agent wait for another host, and go. Raises SnapshotRefused, NovaError."""
        try:
            await self.link.freeze()
        except FreezeRefused as refused:
            raise SnapshotRefused(str(refused)) from None
        except ControlLost as lost:
            raise NovaError("dependency_unavailable", f"the guest's agent is gone: {lost}") from lost
        self.link.close()

    async def thaw(self, token: bytes, place: PlaceHead | None = None) -> None:
        """Be an instance of its own, with another token, clock and randomness; ``place``: what a machine that was booted for
        nobody is to be. Raises NovaError ``dependency_unavailable``."""
        head = ThawHead(
            instance_id=self.instance_id,
            token_sha256=hashlib.sha256(token).hexdigest(),
            now_ns=time.time_ns(),
            seed=secrets.token_hex(_SEED_BYTES),
            place=place,
        )
        try:
            async with asyncio.timeout(self.init_timeout_s):
                await self.link.thaw(head)
        except (FreezeRefused, ControlLost, TimeoutError) as error:
            raise NovaError("dependency_unavailable", f"the agent did not go on from its snapshot: {error}") from error

    async def death_cause(self) -> DeathCause:
        dead = self.group.oom_kills() > 0 or _OUT_OF_MEMORY in self.machine.console.tail()
        return "out_of_memory" if dead else "unknown"

    def stats(self) -> InstanceStats:
        """Of the whole machine as the host sees it; zeros when it has ended."""
        if self.machine.ended.done():
            return InstanceStats()
        try:
            usage = self.group.usage()
            return InstanceStats(usage.memory_bytes, usage.cpu_us, usage.pids, self.group.oom_kills())
        except OSError:
            return InstanceStats()
