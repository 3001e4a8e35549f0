"""The Firecracker backend: every instance is a machine of its own, jailed, with its drives, network and agent."""

import contextlib
import hashlib
import shutil
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.firecracker import boot, leftovers
from nova.execution.backends.firecracker.jail import VSOCK, Jail
from nova.execution.backends.firecracker.machine import Machine
from nova.execution.backends.firecracker.options import MACHINES_MOST, FirecrackerOptions, leases_node, missing
from nova.execution.backends.firecracker.vsock import await_port
from nova.execution.backends.sandbox.cgroup_layout import detect_layout
from nova.execution.backends.sandbox.cgroups import Groups, NoGroups
from nova.execution.backends.vm.abilities import Abilities
from nova.execution.backends.vm.backend import MachineBackend
from nova.execution.backends.vm.drives import make_blank_drives, make_drives, own_drives
from nova.execution.backends.vm.guest import Guest
from nova.execution.backends.vm.host import destroy, limit
from nova.execution.backends.vm.leases import Leases
from nova.execution.backends.vm.network import VmNetwork
from nova.execution.backends.vm.snapshots import Kept
from nova.execution.channel_deadlines import Deadlines
from nova.execution.images import ImageFile, Images
from nova.execution.relay import relayed
from nova.service import to_its_end

log = structlog.get_logger(__name__)

USER: Final = "vm-uid"
"""The kind of lease."""
STATE: Final = "state"
MEMORY: Final = "memory"

Reach = Callable[[Machine, int], Awaitable[socket.socket]]
"""A control socket to the agent behind that port of a started machine, as :meth:`DirectChannel.connect` takes it."""


async def reach(machine: Machine, port: int) -> socket.socket:
    """Through the machine's vsock and the relay at its other end. Waits for as long as it takes."""
    return await relayed(await await_port(machine.jail.root / VSOCK, port))


@dataclass(slots=True, eq=False)
class MicroVm(Guest[Machine]):
    """A machine of Firecracker."""


class FirecrackerBackend(MachineBackend[MicroVm]):
    name = "firecracker"

    def __init__(
        self, options: FirecrackerOptions, images: Images, *, reach: Reach = reach, home: int | None = None
    ) -> None:
        """``reach`` is how the agent of a started machine is reached; ``home`` a descriptor of the network namespace to put
        the bridge into, instead of this process's."""
        folder = options.snapshot_dir / options.node
        super().__init__(images, options.runtimes, folder, options.snapshots_mb, templates=options.templates)
        self._options = options
        self._reach = reach
        self._leases = Leases(options.leases, leases_node(options.node))
        self._network = VmNetwork(
            self._leases,
            options.bridge,
            options.subnet,
            private=options.private_networks,
            blocked=options.blocked,
            resolvers=options.resolvers,
            home=home,
        )
        self._groups: Groups = NoGroups()
        self._online = False
        self._reason = "the backend has not been started"
        self._deadlines = Deadlines()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """What is missing is said by :meth:`capabilities`. Removes what a killed daemon of this node left."""
        if reason := missing(self._options):
            self._reason = reason
            return
        self._groups = detect_layout(self._options.cgroup_root).open(f"{self._options.node}-fc")
        removed = await to_its_end(self._sweep)
        if removed:
            log.warning("a killed daemon left machines; they are gone", removed=removed)
        try:
            await self._network.start()
            self._online = True
        except (OSError, NovaError) as error:
            log.warning("machines are offline: this host cannot filter their network", reason=str(error))
        self._reason = ""

    def _sweep(self) -> list[str]:
        options = self._options
        removed = leftovers.sweep(options.jail_dir, options.programs, options.node, self._groups, self._leases)
        return [*removed, *(f"snapshot {name}" for name in self._sweep_kept())]

    async def close(self) -> None:
        await self._close_machines()
        await self._network.close()
        self._groups.close()
        self._reason = "the backend is closed"

    # -- what it can do ------------------------------------------------------------------------------------------

    def _can(self) -> Abilities:
        drives = bool(self._options.drive_mbps or self._options.drive_ops)
        return Abilities(self.name, self._reason, self._groups.hard, self._online, self._online, drives)

    def snapshot_obstacle(self, runtime: str) -> str:
        if self._reason:
            return self._reason
        try:
            forks = self._images.launch(runtime).kind == "fork"
        except NovaError as error:
            return error.detail
        return "" if forks else f"workers of {runtime} cannot renew what must differ between instances"

    # -- machines ------------------------------------------------------------------------------------------------

    async def _boot(
        self, spec: InstanceSpec, image: ImageFile, token: bytes, undo: contextlib.AsyncExitStack, *, blank: bool
    ) -> MicroVm:
        """The console of a machine that did not come up is kept in the log folder."""
        options = self._options
        vm = await self._prepare(spec, undo, background=blank)
        jail = vm.machine.jail
        kernel = {boot.KERNEL: options.kernel, boot.ROOTFS: image.path}
        await to_its_end(partial(_share, jail, kernel | ({boot.INITRD: options.initrd} if options.initrd else {})))
        await to_its_end(partial(self._fill, jail, spec, blank=blank))
        digest = hashlib.sha256(token).hexdigest()
        limiter = boot.drive_limiter(options.drive_mbps, options.drive_ops)
        setup = boot.setup(spec, digest, options.vsock_port, initrd=bool(options.initrd), blank=blank, drives=limiter)
        await vm.machine.api.configure(setup)
        await vm.machine.api.start()
        await self._greet(vm, token, spec.instance_id)
        return vm

    async def _resume(
        self, spec: InstanceSpec, image: ImageFile, kept: Kept, undo: contextlib.AsyncExitStack, *, blank: bool
    ) -> MicroVm:
        vm = await self._prepare(spec, undo)
        machine = vm.machine
        await to_its_end(
            partial(_share, machine.jail, {boot.ROOTFS: image.path, **{path.name: path for path in kept.files}})
        )
        if blank:
            await to_its_end(partial(self._fill, machine.jail, spec, extended=True))
        await machine.api.load_snapshot(STATE, MEMORY, resume=False)
        if not spec.network.offline:
            await machine.api.limit_interface(boot.interface(spec.limits))
        await machine.api.resume()
        await self._greet(vm, kept.token, kept.name)
        return vm

    async def _prepare(
        self, spec: InstanceSpec, undo: contextlib.AsyncExitStack, *, background: bool = False
    ) -> MicroVm:
        """A process without a machine yet, in its jail, network and control group."""
        options = self._options
        uid = self._leases.take(USER, options.uid, options.uid + MACHINES_MOST - 1)
        undo.callback(self._leases.release, USER, uid)
        line = await self._network.lease(spec.network, uid)
        undo.push_async_callback(self._network.release, line)
        jail = Jail(options.jail_dir, f"{options.node}-{uid - options.uid:x}", options.programs, uid, options.gid)
        undo.push_async_callback(to_its_end, jail.remove)
        await to_its_end(jail.make)
        group = self._groups.create(jail.name)
        undo.push_async_callback(destroy, group)
        limit(group, spec.limits, boot.VMM_MB, background=background)
        machine = await Machine.launch(jail, line.path, group)
        undo.push_async_callback(machine.end)
        return MicroVm(spec.instance_id, spec, machine, group, undo)

    def _fill(self, jail: Jail, spec: InstanceSpec, *, blank: bool = False, extended: bool = False) -> None:
        """Code and layers as drives of this machine, which it cannot write to."""
        if blank:
            made: Sequence[Path] = make_blank_drives(jail.root, spec)
        else:
            made = make_drives(jail.root, spec, self._options.code_drive_mb, extended=extended)
        for path in made:
            jail.lend(path.name)

    async def _greet(self, vm: MicroVm, token: bytes, name: str) -> None:
        reach = partial(self._reach, vm.machine, self._options.vsock_port)
        try:
            await vm.greet(reach, token, name, self._deadlines, self._options.boot_timeout_s)
        except NovaError as error:
            log.warning("a machine did not come up", reason=error.detail, last_words=vm.machine.console.last_words())
            with contextlib.suppress(OSError):
                vm.machine.console.save(self._options.log_dir / f"{vm.machine.jail.name}.log")
            raise

    async def _save(self, vm: MicroVm, work: Path, *, drives: bool) -> None:
        machine = vm.machine
        await machine.api.pause()
        await machine.api.create_snapshot(STATE, MEMORY)
        await machine.end()
        names = [STATE, MEMORY, *(own_drives(vm.spec) if drives else ())]
        await to_its_end(partial(_collect, machine.jail, names, work))

    async def _made_with(self) -> tuple[Mapping[str, Path], Mapping[str, object]]:
        options = self._options
        files = {"firecracker": options.programs.firecracker, "kernel": options.kernel}
        files |= {"initrd": options.initrd} if options.initrd else {}
        return files, {"drive_mbps": options.drive_mbps, "drive_ops": options.drive_ops, "port": options.vsock_port}


def _share(jail: Jail, files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        jail.share(path, name)


def _collect(jail: Jail, names: Sequence[str], work: Path) -> None:
    """Take what belongs to the machine out of its jail; others may read it there, in jails of their own."""
    for name in names:
        jail.lend(name)
        shutil.move(jail.root / name, work / name)
