"""The QEMU backend: every instance is a machine of its own, with KVM where guests run with it and emulated elsewhere.

A machine that is offline has no network device: nothing can reach it, and it can reach nothing but the daemon, through its
serial port.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.qemu import boot
from nova.execution.backends.qemu.machine import Machine
from nova.execution.backends.qemu.options import MACHINES_MOST, Accelerator, QemuOptions, missing, program
from nova.execution.backends.qemu.probe import best_accelerator
from nova.execution.backends.qemu.wiring import Wiring
from nova.execution.backends.sandbox.cgroup_layout import detect_layout
from nova.execution.backends.sandbox.cgroups import Groups, NoGroups
from nova.execution.backends.vm import shape
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

USER: Final = "qemu-uid"
"""The kind of lease."""
SNAPSHOT_RUNTIMES: Final = frozenset({"python"})
"""Those whose workers take over another environment and other random numbers when they go on."""
STATE: Final = "state"
COMMAND_LINE: Final = "command-line"
"""The kernel's, of a machine that is kept: who goes on from it is started with the same."""
_EMULATED: Final = "qemu-emulated"
_INIT_S: Final = {"kvm": 10.0, "tcg": 60.0}
"""What loading a function may take: emulated, importing takes ten times as long."""


@dataclass(slots=True, eq=False)
class QemuVm(Guest[Machine]):
    """``command_line``: what its kernel was booted with."""

    command_line: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a machine is started as; ``drives``: the root first; ``state``: what it goes on from. ``background``: nobody waits
    for it."""

    spec: InstanceSpec
    drives: Sequence[Path]
    command_line: str
    state: Path | None = None
    background: bool = False


class QemuBackend(MachineBackend[QemuVm]):
    name = "qemu"

    def __init__(self, options: QemuOptions, images: Images) -> None:
        folder = options.snapshot_dir / options.node
        super().__init__(images, options.runtimes, folder, options.snapshots_mb, templates=options.templates)
        self._options = options
        self._node = f"{options.node}-qemu"
        self._leases = Leases(options.leases, self._node)
        self._privileged = os.geteuid() == 0
        self._network = VmNetwork(
            self._leases,
            options.bridge,
            options.subnet,
            private=options.private_networks,
            blocked=options.blocked,
            resolvers=options.resolvers,
        )
        self._online = False
        self._left_a_bridge = False
        self._groups: Groups = NoGroups()
        self._reason = "the backend has not been started"
        self._probing: asyncio.Task[Accelerator] | None = None
        self._deadlines = Deadlines()

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """What is missing is said by :meth:`capabilities`. Removes what a killed daemon of this node left."""
        self._options.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if reason := missing(self._options):
            self._reason = reason
            return
        self._groups = detect_layout(self._options.cgroup_root).open(self._node)
        removed = await to_its_end(self._sweep)
        if removed:
            log.warning("a killed daemon left machines; they are gone", removed=removed)
        await self._connect_host()
        self._probing = asyncio.create_task(best_accelerator(self._options), name="qemu.accelerator")
        self._reason = ""

    async def _connect_host(self) -> None:
        if not self._privileged:
            return
        try:
            # one that a killed daemon left goes when this one closes
            await self._network.start(bridge=self._left_a_bridge)
            self._online = True
        except (OSError, NovaError) as error:
            log.warning("machines are offline: this host cannot filter their network", reason=str(error))

    def _sweep(self) -> list[str]:
        """The processes ended with the daemon that made them; those that have not yet end here."""
        removed = self._groups.sweep()
        for folder in self._drives.glob("*"):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
        if self._privileged:
            released = self._leases.release_all()
            self._left_a_bridge = any(lease.startswith("bridge ") for lease in released)
        return removed + self._sweep_kept()

    @property
    def _drives(self) -> Path:
        """A folder for each machine."""
        return self._options.home / "machines"

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})
        await self._close_machines()
        await self._network.close()
        self._groups.close()
        self._reason = "the backend is closed"

    # -- what it can do ------------------------------------------------------------------------------------------

    def _strength(self) -> str:
        return self.name if self._accelerated() else _EMULATED

    def _accelerated(self) -> bool:
        """Emulated until it is known better."""
        probing = self._probing
        if probing is None or not probing.done() or probing.cancelled() or probing.exception() is not None:
            return False
        return probing.result() == "kvm"

    async def _accelerator(self) -> Accelerator:
        assert self._probing is not None, "a backend that works has been started"
        return await asyncio.shield(self._probing)

    def _can(self) -> Abilities:
        return Abilities(
            self.name, self._reason, self._groups.hard, self._online, self._online and self._network.shapes
        )

    def snapshot_obstacle(self, runtime: str) -> str:
        if runtime not in SNAPSHOT_RUNTIMES:
            return f"workers of {runtime} cannot renew what must differ between instances"
        return self._reason

    # -- machines ------------------------------------------------------------------------------------------------

    async def _boot(
        self, spec: InstanceSpec, image: ImageFile, token: bytes, undo: contextlib.AsyncExitStack, *, blank: bool
    ) -> QemuVm:
        folder = self._folder(spec.instance_id, undo)
        drives = await self._fill(folder, spec, blank=blank)
        digest = hashlib.sha256(token).hexdigest()
        words = boot.command_line(spec, digest, await self._accelerator(), blank=blank)
        plan = Plan(spec, [image.path, *drives], words, background=blank)
        return await self._launch(plan, token, spec.instance_id, undo)

    async def _resume(
        self, spec: InstanceSpec, image: ImageFile, kept: Kept, undo: contextlib.AsyncExitStack, *, blank: bool
    ) -> QemuVm:
        if blank:
            drives = await self._fill(self._folder(spec.instance_id, undo), spec, extended=True)
        else:
            drives = [kept.folder / name for name in own_drives(spec)]
        words = await asyncio.to_thread((kept.folder / COMMAND_LINE).read_text)
        plan = Plan(spec, [image.path, *drives], words, kept.folder / STATE)
        return await self._launch(plan, kept.token, kept.name, undo)

    def _folder(self, instance_id: str, undo: contextlib.AsyncExitStack) -> Path:
        self._drives.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self._drives / instance_id
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    async def _fill(
        self, folder: Path, spec: InstanceSpec, *, blank: bool = False, extended: bool = False
    ) -> list[Path]:
        """Code and layers as drives of this machine, which it cannot write to."""
        if blank:
            return await to_its_end(partial(make_blank_drives, folder, spec))
        return await to_its_end(partial(make_drives, folder, spec, self._options.code_drive_mb, extended=extended))

    async def _launch(self, plan: Plan, token: bytes, name: str, undo: contextlib.AsyncExitStack) -> QemuVm:
        """A running machine whose agent, which calls itself ``name``, has been greeted."""
        options, spec = self._options, plan.spec
        accel = await self._accelerator()
        uid, line = None, None
        if self._privileged:
            uid = self._leases.take(USER, options.uid, options.uid + MACHINES_MOST - 1)
            undo.callback(self._leases.release, USER, uid)
        if self._online and uid is not None:
            line = await self._network.lease(spec.network, uid, spec.limits.net_mbps)
            undo.push_async_callback(self._network.release, line)
        group = self._groups.create(spec.instance_id)
        undo.push_async_callback(destroy, group)
        limit(group, spec.limits, boot.VMM_MB, background=plan.background)
        kernel = options.kernels.require()
        tap = None if line is None or spec.network.offline else await self._network.tap(line)
        wiring = Wiring(kernel, plan.drives, plan.state, tap)
        undo.callback(wiring.close)
        title = f"nova-{options.node}-{spec.instance_id}"
        size = shape.memory_mb(spec.limits), shape.vcpus(spec.limits)
        argv = boot.machine(program(options), title, accel, plan.command_line, size, wiring)
        as_user = boot.as_user(uid, options.gid, line.path if line is not None else "")
        machine = await Machine.launch(spec.instance_id, [*as_user, *argv], wiring, group)
        undo.push_async_callback(machine.end)
        vm = QemuVm(spec.instance_id, spec, machine, group, undo, _INIT_S[accel], command_line=plan.command_line)
        await self._greet(vm, wiring, token, name)
        return vm

    async def _greet(self, vm: QemuVm, wiring: Wiring, token: bytes, name: str) -> None:
        wire = wiring.take_agent()
        vm.undo.callback(wire.close)  # unless the relay has it
        try:
            await vm.greet(partial(relayed, wire), token, name, self._deadlines, self._options.boot_timeout_s)
        except NovaError as error:
            log.warning("a machine did not come up", reason=error.detail, last_words=vm.machine.console.last_words())
            raise

    async def _save(self, vm: QemuVm, work: Path, *, drives: bool) -> None:
        machine = vm.machine
        await machine.agent_left()
        await machine.save(work / STATE)
        await machine.end()
        (work / COMMAND_LINE).write_text(vm.command_line)
        for name in own_drives(vm.spec) if drives else ():
            await to_its_end(partial(shutil.move, self._drives / vm.instance_id / name, work / name))

    async def _made_with(self) -> tuple[Mapping[str, Path], Mapping[str, object]]:
        kernel = self._options.kernels.require()
        files = {"qemu": Path(program(self._options)), "kernel": kernel.vmlinux, "initrd": kernel.initrd}
        return files, {"accelerator": await self._accelerator(), "machine": boot.MACHINE}
