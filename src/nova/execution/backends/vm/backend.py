"""What backends of machines have in common: how one is booted, kept and gone on from, and its end.

Making a machine takes resources in a fixed order, each with its undo registered before the next is taken; stopping runs the
undos in reverse: the process ends first, then what it had goes, at last its user is given back. A machine comes from the
first of these that there is: the function's snapshot, the template of its shape, a boot.
"""

import asyncio
import contextlib
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import structlog

from nova.domain.call import StartSource
from nova.errors import NovaError
from nova.execution.backends.base import STRENGTH, Capabilities, InitSpec, Instance, InstanceSpec, InstanceStats
from nova.execution.backends.vm import shape
from nova.execution.backends.vm.abilities import Abilities
from nova.execution.backends.vm.fingerprint import fingerprint, function_fingerprint
from nova.execution.backends.vm.guest import Guest
from nova.execution.backends.vm.host import host_errors, with_image
from nova.execution.backends.vm.shape import Shape
from nova.execution.backends.vm.snapshots import Kept, KeptMachines
from nova.execution.backends.vm.templates import TemplateShelf
from nova.execution.images import ImageFile, Images
from nova.ids import new_id
from nova.service import to_its_end

log = structlog.get_logger(__name__)

GRACE_MS: Final = 1000
"""How long an agent has to end its workers."""
RECONCILE_AGE_S: Final = 30.0
"""An instance younger than this may not be known to its owner yet."""
TEMPLATES_MB: Final = 4096
"""What templates may take on disk; those used longest ago go first."""
_TOKEN_BYTES: Final = 32

G = TypeVar("G", bound=Guest[Any])


class MachineBackend(ABC, Generic[G]):
    """A backend whose instances are machines. What differs between those that run them is abstract here."""

    name: str

    def __init__(
        self, images: Images, runtimes: Sequence[str], snapshots: Path, snapshots_mb: int, *, templates: bool
    ) -> None:
        """``runtimes``: those to look for images of; ``snapshots``: a folder of this backend's alone, for machines that are kept;
        ``templates``: keep some that were booted for nobody."""
        self._images = images
        self._runtimes = runtimes
        self._kept = KeptMachines(snapshots, snapshots_mb)
        self._blank = KeptMachines(snapshots.with_name(f"{snapshots.name}.templates"), TEMPLATES_MB)
        self._templates = TemplateShelf(self.name, self._blank, self._keep_blank) if templates else None
        self._vms: dict[str, G] = {}

    # -- what differs --------------------------------------------------------------------------------------------

    @abstractmethod
    def _can(self) -> Abilities: ...

    @abstractmethod
    def snapshot_obstacle(self, runtime: str) -> str:
        """See :class:`Snapshotter`."""

    def _strength(self) -> str:
        """A key of :data:`STRENGTH`."""
        return self.name

    @abstractmethod
    async def _boot(
        self, spec: InstanceSpec, image: ImageFile, token: bytes, undo: contextlib.AsyncExitStack, *, blank: bool
    ) -> G:
        """A new machine whose agent has been greeted. ``blank``: nothing is on its drives and none is mounted. Raises NovaError,
        OSError."""

    @abstractmethod
    async def _save(self, vm: G, work: Path, *, drives: bool) -> None:
        """Write a frozen machine to files in ``work``, with its own drives if ``drives``, and end it. Raises NovaError,
        OSError."""

    @abstractmethod
    async def _resume(
        self, spec: InstanceSpec, image: ImageFile, kept: Kept, undo: contextlib.AsyncExitStack, *, blank: bool
    ) -> G:
        """A machine that goes on from ``kept``, its agent greeted. ``blank``: with drives made for ``spec``, else with those that
        were kept. Raises NovaError, OSError."""

    @abstractmethod
    async def _made_with(self) -> tuple[Mapping[str, Path], Mapping[str, object]]:
        """Files and options on which a kept machine depends, for :func:`fingerprint`."""

    # -- what it can do ------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        can = self._can()
        found = () if can.reason else await asyncio.to_thread(with_image, self._images, self._runtimes)
        reason = can.unavailable(found)
        return Capabilities(
            available=not reason,
            reason=reason,
            isolation="vm",
            enforces=can.enforces(),
            runtimes=frozenset(found),
            strength=STRENGTH[self._strength()],
            snapshot=any(not self.snapshot_obstacle(runtime) for runtime in found),
            template=not reason and self._templates is not None,
            reload=True,
            layers=True,
        )

    # -- instances -----------------------------------------------------------------------------------------------

    async def create(self, spec: InstanceSpec) -> Instance:
        """Raises NovaError ``unsupported``, ``runtime_unavailable``, ``capacity``, ``storage_full`` or
        ``dependency_unavailable``."""
        self._can().refuse(spec)
        image = await self._image(spec)
        vm = await self._from_template(spec, image)
        if vm is None:
            with self._templates.booting() if self._templates is not None else contextlib.nullcontext():
                vm = await self._booted(spec, image)
        self._vms[spec.instance_id] = vm
        return vm

    async def _image(self, spec: InstanceSpec) -> ImageFile:
        return await asyncio.to_thread(self._images.require, spec.runtime, "ext4")

    async def _booted(self, spec: InstanceSpec, image: ImageFile) -> G:
        async with contextlib.AsyncExitStack() as undo:
            with host_errors():
                vm = await self._boot(spec, image, secrets.token_bytes(_TOKEN_BYTES), undo, blank=False)
            vm.undo = undo.pop_all()
        return vm

    async def _go_on(self, spec: InstanceSpec, image: ImageFile, kept: Kept, source: StartSource) -> G | None:
        """A failure is no reason not to boot, so it is logged and there is None."""
        blank = source == "template"
        try:
            async with contextlib.AsyncExitStack() as undo:
                with host_errors():
                    vm = await self._resume(spec, image, kept, undo, blank=blank)
                    undo.callback(vm.link.close)
                    await vm.thaw(secrets.token_bytes(_TOKEN_BYTES), shape.place(spec) if blank else None)
                vm.undo = undo.pop_all()
        except NovaError as error:
            if error.code != "dependency_unavailable":
                raise
            log.warning("a machine did not go on; it boots", kept_as=source, backend=self.name, reason=error.detail)
            return None
        vm.source, vm.runtime_us = source, 0  # it was started before anybody asked
        return vm

    # -- functions that are kept loaded --------------------------------------------------------------------------

    async def snapshot(self, key: str, spec: InstanceSpec, init: InitSpec) -> None:
        """See :class:`Snapshotter`. A machine of its own loads the function, lets go of this host, is written to disk and
        ends."""
        self._can().refuse(spec)
        image = await self._image(spec)
        made_with = function_fingerprint(await self._fingerprint(spec, image), spec)

        async def load(vm: G) -> None:
            await vm.channel.init(init)

        await self._keep(self._kept, key, spec, image, made_with, load, blank=False)

    async def restore(self, key: str, spec: InstanceSpec) -> Instance | None:
        """See :class:`Snapshotter`."""
        self._can().refuse(spec)
        image = await self._image(spec)
        made_with = function_fingerprint(await self._fingerprint(spec, image), spec)
        kept = await asyncio.to_thread(self._kept.find, key, made_with)
        vm = None if kept is None else await self._go_on(spec, image, kept, "snapshot")
        if vm is not None:
            self._vms[spec.instance_id] = vm
        return vm

    async def drop_snapshot(self, key: str) -> None:
        await to_its_end(partial(self._kept.drop, key))

    async def snapshot_memory(self, key: str) -> int:
        return await asyncio.to_thread(self._kept.size, key)

    async def _keep(
        self,
        into: KeptMachines,
        key: str,
        spec: InstanceSpec,
        image: ImageFile,
        made_with: str,
        load: Callable[[G], Awaitable[None]],
        *,
        blank: bool,
    ) -> None:
        token = secrets.token_bytes(_TOKEN_BYTES)
        async with contextlib.AsyncExitStack() as undo:
            with host_errors():
                work = await asyncio.to_thread(into.workshop)
                undo.push_async_callback(to_its_end, partial(shutil.rmtree, work, ignore_errors=True))
                vm = await self._boot(spec, image, token, undo, blank=blank)
                undo.callback(vm.link.close)
                await load(vm)
                await vm.freeze()
                await self._save(vm, work, drives=not blank)
                keep = partial(into.keep, key, work, name=spec.instance_id, token=token, fingerprint=made_with)
                await to_its_end(keep)

    async def _fingerprint(self, spec: InstanceSpec, image: ImageFile) -> str:
        """Of a machine of this shape."""
        files, options = await self._made_with()
        with host_errors():
            return await asyncio.to_thread(fingerprint, files, options, image, Shape.of(spec))

    # -- templates -----------------------------------------------------------------------------------------------

    async def _from_template(self, spec: InstanceSpec, image: ImageFile) -> G | None:
        if self._templates is None:
            return None
        kept = await self._templates.find(spec, await self._fingerprint(spec, image))
        if kept is None:
            log.info("no template of this shape yet; a machine boots", backend=self.name, instance_id=spec.instance_id)
            self._templates.want(spec)
            return None
        vm = await self._go_on(spec, image, kept, "template")
        if vm is None:
            await self._templates.useless(spec)
        return vm

    async def _keep_blank(self, key: str, spec: InstanceSpec) -> None:
        image = await self._image(spec)
        nobody = InstanceSpec(
            new_id(), spec.runtime, spec.runtime_version, None, spec.limits, spec.network, layers=spec.layers
        )

        async def nothing(_: G) -> None: ...

        await self._keep(self._blank, key, nobody, image, await self._fingerprint(spec, image), nothing, blank=True)
        log.info("a template is kept", backend=self.name, shape=key)

    # -- their end -----------------------------------------------------------------------------------------------

    async def stop(self, instance: Instance, *, reason: str) -> None:
        """Ask the agent, then end the process and give everything back, each step whatever became of those before."""
        vm = self._vms.get(instance.instance_id)
        if vm is None or vm is not instance:
            return
        del self._vms[vm.instance_id]
        ending = asyncio.ensure_future(self._end(vm))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait({ending})
            raise
        log.debug("machine stopped", instance_id=instance.instance_id, reason=reason)

    async def _end(self, vm: G) -> None:
        try:
            async with vm.undo:
                if vm.link.usable:
                    await vm.link.stop(GRACE_MS)
                vm.link.close()
        except Exception:
            log.exception("a machine could not be ended in full; the next start removes the rest", vm=vm.instance_id)

    async def stats(self, instance: Instance) -> InstanceStats:
        """Zeros for an instance that has ended."""
        return instance.stats() if isinstance(instance, Guest) else InstanceStats()

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        now = asyncio.get_running_loop().time()
        lost = [vm for name, vm in self._vms.items() if name not in keep and now - vm.born > RECONCILE_AGE_S]
        for vm in lost:
            await self.stop(vm, reason="nobody owns it")
        return [vm.instance_id for vm in lost]

    def _sweep_kept(self) -> list[str]:
        """What a killed daemon kept is of no use: the tokens of its machines died with it."""
        return [*self._kept.sweep(), *self._blank.sweep()]

    async def _close_machines(self) -> None:
        if self._templates is not None:
            await self._templates.close()
        await asyncio.gather(*(self.stop(vm, reason="closing") for vm in list(self._vms.values())))
        await to_its_end(self._kept.close)
