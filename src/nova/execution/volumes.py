"""Volumes of functions on this node: mounted for an instance, written by one at a time, given back when it has stopped.

The right to write is a lease in the database, with a fence that grows. It is renewed while its instance lives; an instance
whose lease is lost is stopped before another may have it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from nova.clock import Clock
from nova.domain.function import FunctionSnapshot
from nova.domain.volume import Mount
from nova.errors import NovaError
from nova.execution.backends.base import VolumeMount
from nova.execution.volume_files import VolumeFiles
from nova.service import Background
from nova.store.volumes import VolumeHost

log = structlog.get_logger(__name__)

LEASE_S: Final = 30.0
RENEW_S: Final = 8.0
SAFE_S: Final = 20.0
"""An instance whose lease could not be renewed for so long is stopped: ten seconds later another may have it."""
WAIT_S: Final = 8.0
"""So long a boot waits for the instance that writes now."""
_AGAIN_S: Final = 0.05
SWEEP_S: Final = 60.0
"""How often the files of deleted volumes are looked for."""


class _Busy(Exception):
    """Another instance writes."""


@dataclass(slots=True)
class _Held:
    """What an instance has. ``fences`` by volume id."""

    volumes: list[str] = field(default_factory=list)
    fences: dict[str, int] = field(default_factory=dict)
    renewed: float = 0.0


class Volumes:
    """Implements ``Mounts`` of the boots."""

    def __init__(
        self, host: VolumeHost, node: str, files: VolumeFiles, clock: Clock, *, wait_s: float = WAIT_S
    ) -> None:
        self._host = host
        self._node = node
        self._files = files
        self._clock = clock
        self._wait_s = wait_s
        self._held: dict[str, _Held] = {}
        self._tasks = Background("volumes")
        self.wanted: Callable[[str], None] = lambda _instance: None
        """called with an instance that another waits for: it is to end when its calls have"""
        self.lost: Callable[[str], None] = lambda _instance: None
        """called with an instance that must not write any more: it is to end at once"""

    async def start(self) -> None:
        self._files.belong_to(await self._host.installation())
        await self._host.release_all()
        self._tasks.spawn("renew", self._renew_often())
        self._tasks.spawn("sweep", self._sweep_often())

    async def close(self) -> None:
        await self._tasks.close()
        for instance_id in list(self._held):
            await self.release(instance_id)
        await self._files.close()

    async def attach(self, snapshot: FunctionSnapshot, instance_id: str) -> tuple[VolumeMount, ...]:
        """What an instance is to mount, ready; it holds that until :meth:`release`.

        Raises NovaError: ``capacity`` when another instance writes for too long, or the volume is on another node (where
        the call may still be served), ``unsupported`` when this host can have none, ``not_found`` when it was deleted.
        """
        if not snapshot.mounts:
            return ()
        held = self._held[instance_id] = _Held(renewed=self._clock.monotonic())
        try:
            # in one order, so that two instances never wait for each other
            ready = {mount.path: await self._attach(held, instance_id, mount) for mount in _ordered(snapshot)}
        except BaseException:
            await asyncio.shield(self.release(instance_id))
            raise
        return tuple(ready[mount.path] for mount in snapshot.mounts)

    async def _attach(self, held: _Held, instance_id: str, mount: Mount) -> VolumeMount:
        node, size_mb = await self._host.look(mount.volume_id)
        here = self._files.has(mount.volume_id)
        if node is not None and not here:
            if node != self._node:
                raise self._elsewhere(mount, node)
            raise NovaError("unsupported", f"mounts: the files of volume {mount.volume!r} are not in volumes.dir here")
        if mount.exclusive:
            held.fences[mount.volume_id] = await self._acquire(mount, instance_id)
        path = await self._files.mounted(mount.volume_id, size_mb)
        if node is None:
            if (settled := await self._host.settle(mount.volume_id)) != self._node:
                await self._files.remove(mount.volume_id)
                raise self._elsewhere(mount, settled)
        elif node != self._node:  # this node had another name
            await self._host.take(mount.volume_id)
        held.volumes.append(mount.volume_id)
        return VolumeMount(path, mount.path, mount.read_only)

    def _elsewhere(self, mount: Mount, node: str) -> NovaError:
        detail = f"mounts: volume {mount.volume!r} is on node {node!r}, this is {self._node!r}"
        return NovaError("capacity", detail, retry_after_s=1)

    async def _acquire(self, mount: Mount, instance_id: str) -> int:
        """The fence of the lease. An instance of this process that has it is asked to make way."""
        waiting = AsyncRetrying(
            retry=retry_if_exception_type(_Busy),
            stop=stop_after_delay(self._wait_s),
            wait=wait_fixed(_AGAIN_S),
            reraise=True,
        )
        try:
            async for attempt in waiting:
                with attempt:
                    fence = await self._host.acquire(mount.volume_id, instance_id, LEASE_S)
                    if fence is None:
                        if (holder := await self._host.holder(mount.volume_id)) is not None:
                            self.wanted(holder)
                        raise _Busy
                    return fence
        except _Busy:
            pass
        detail = f"mounts: another instance writes to volume {mount.volume!r}, which is not shared"
        raise NovaError("capacity", detail, retry_after_s=1)

    async def release(self, instance_id: str) -> None:
        """The instance has stopped. Idempotent, and never fails: a lease that cannot be given back ends by itself."""
        held = self._held.pop(instance_id, None)
        if held is None:
            return
        try:
            if held.fences:
                await self._host.release(list(held.fences), instance_id)
            for volume_id in held.volumes:
                await self._tell_use(volume_id)
        except (NovaError, OSError) as error:
            log.warning("a volume could not be given back", instance=instance_id, reason=str(error))

    async def _tell_use(self, volume_id: str) -> None:
        used = await asyncio.to_thread(self._files.used, volume_id)
        if used:
            await self._host.tell_use(volume_id, used)

    async def _renew_often(self) -> None:
        while True:
            await self._clock.sleep(RENEW_S)
            try:
                await self.renew()
                for volume_id in {volume_id for held in self._held.values() for volume_id in held.volumes}:
                    await self._tell_use(volume_id)
            except (NovaError, OSError) as error:
                log.warning("leases of volumes could not be renewed", reason=str(error))
            self._stop_late()

    async def renew(self) -> None:
        """Every lease that instances here have; an instance that has lost one is stopped. Raises NovaError."""
        now = self._clock.monotonic()
        leases = {lease for held in self._held.values() for lease in held.fences.items()}
        if not leases:
            return
        kept = await self._host.renew(leases, LEASE_S)
        for instance_id, held in list(self._held.items()):
            if held.fences.items() & leases <= kept:
                held.renewed = now
            else:
                log.error("an instance lost the right to write to a volume", instance=instance_id)
                self.lost(instance_id)

    def _stop_late(self) -> None:
        now = self._clock.monotonic()
        for instance_id, held in list(self._held.items()):
            if held.fences and now - held.renewed >= SAFE_S:
                log.error("an instance may lose the right to write to a volume", instance=instance_id)
                self.lost(instance_id)

    async def _sweep_often(self) -> None:
        while True:
            try:
                await self.sweep()
            except (NovaError, OSError) as error:
                log.warning("the files of deleted volumes could not be removed", reason=str(error))
            await self._clock.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Remove the files of volumes that were deleted."""
        there = await asyncio.to_thread(self._files.ids)
        gone = set(there) - await self._host.existing(there) if there else ()
        for volume_id in gone:
            await self._files.remove(volume_id)


def _ordered(snapshot: FunctionSnapshot) -> list[Mount]:
    return sorted(snapshot.mounts, key=lambda mount: mount.volume_id)
