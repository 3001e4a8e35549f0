"""The QEMU backend: every instance is a machine of its own, with KVM where guests run with it and emulated elsewhere.

Making one takes resources in a fixed order, each with its undo registered before the next is taken; stopping runs the undos
in reverse: the process ends first, then its control group and drives go, at last the user is given back. A machine has no
network device, so nothing can reach it and it can reach nothing but the daemon, through its serial port.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from nova.domain.function import Limits
from nova.errors import NovaError, as_refusal
from nova.execution.backends.base import (
    STRENGTH,
    Capabilities,
    Enforced,
    InitSpec,
    Instance,
    InstanceSpec,
    InstanceStats,
)
from nova.execution.backends.qemu import boot
from nova.execution.backends.qemu.machine import Machine
from nova.execution.backends.qemu.options import MACHINES_MOST, Accelerator, QemuOptions, missing, program
from nova.execution.backends.qemu.probe import best_accelerator
from nova.execution.backends.qemu.snapshots import STATE, Snapshots
from nova.execution.backends.qemu.vm import QemuVm
from nova.execution.backends.qemu.wiring import Wiring
from nova.execution.backends.sandbox.cgroup_layout import detect_layout
from nova.execution.backends.sandbox.cgroups import Group, Groups, NoGroups
from nova.execution.backends.vm.codedrive import make_drive
from nova.execution.backends.vm.leases import Leases
from nova.execution.channel_deadlines import Deadlines
from nova.execution.images import Images
from nova.service import to_its_end

log = structlog.get_logger(__name__)

USER: Final = "qemu-uid"
"""The kind of lease."""
GRACE_MS: Final = 1000
"""How long an agent has to end its workers."""
RECONCILE_AGE_S: Final = 30.0
"""An instance younger than this may not be known to its owner yet."""
SNAPSHOT_RUNTIMES: Final = frozenset({"python"})
"""Those whose workers take over another environment and other random numbers when they go on."""
_EMULATED: Final = "qemu-emulated"
_GROUP_S: Final = 2.0
_TOKEN_BYTES: Final = 32
_INIT_S: Final = {"kvm": 10.0, "tcg": 60.0}
"""What loading a function may take: emulated, importing takes ten times as long."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a machine is started as; ``drives``: the root first."""

    spec: InstanceSpec
    accel: Accelerator
    drives: tuple[Path, ...]
    command_line: str


class QemuBackend:
    name = "qemu"

    def __init__(self, options: QemuOptions, images: Images) -> None:
        self._options = options
        self._images = images
        self._node = f"{options.node}-qemu"
        self._leases = Leases(options.leases, self._node)
        self._privileged = os.geteuid() == 0
        self._groups: Groups = NoGroups()
        self._reason = "the backend has not been started"
        self._probing: asyncio.Task[Accelerator] | None = None
        self._snapshots = Snapshots(options.snapshot_dir / options.node, options.snapshots_mb)
        self._deadlines = Deadlines()
        self._vms: dict[str, QemuVm] = {}

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
        self._probing = asyncio.create_task(best_accelerator(self._options), name="qemu.accelerator")
        self._reason = ""

    def _sweep(self) -> list[str]:
        """The processes ended with the daemon that made them; those that have not yet end here."""
        removed = self._groups.sweep()
        for folder in self._drives.glob("*"):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
        if self._privileged:
            self._leases.release_all()
        return removed + self._snapshots.sweep()

    @property
    def _drives(self) -> Path:
        """A folder for each machine."""
        return self._options.home / "machines"

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})
        await asyncio.gather(*(self.stop(vm, reason="closing") for vm in list(self._vms.values())))
        await to_its_end(self._snapshots.close)
        self._groups.close()
        self._reason = "the backend is closed"

    # -- what it can do ------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        runtimes = frozenset(await asyncio.to_thread(self._runtimes)) if not self._reason else frozenset()
        reason = self._reason or ("" if runtimes else "no runtime has an image; nova runtime build python makes one")
        cpu: Enforced = "hard" if self._groups.hard else "no"
        return Capabilities(
            available=not reason,
            reason=reason,
            isolation="vm",
            enforces={
                "memory": "hard",
                "cpu": cpu,
                "pids": "hard",
                "disk": "hard",
                "network_rules": "no",
                "net_io": "no",
                "read_only_root": "hard",
                "user": "hard",
                "seccomp": "no",
            },
            runtimes=runtimes,
            strength=STRENGTH[self.name if self._accelerated() else _EMULATED],
            snapshot=not reason and SNAPSHOT_RUNTIMES.intersection(runtimes) != set(),
            reload=True,
            layers=True,
        )

    def _accelerated(self) -> bool:
        """Emulated until it is known better."""
        probing = self._probing
        if probing is None or not probing.done() or probing.cancelled() or probing.exception() is not None:
            return False
        return probing.result() == "kvm"

    def _runtimes(self) -> list[str]:
        found = []
        for runtime in self._options.runtimes:
            with contextlib.suppress(NovaError):
                if self._images.find(runtime, "ext4") is not None:
                    found.append(runtime)
        return found

    def _refuse_unenforceable(self, spec: InstanceSpec) -> None:
        if self._reason:
            raise NovaError("unsupported", f"the qemu backend does not work on this host: {self._reason}")
        if not spec.network.offline:
            text = "machines of the qemu backend have no network; strict without rules is possible"
            raise NovaError("unsupported", f"network_policy.isolation_mode {spec.network.isolation_mode}: {text}")
        if spec.limits.net_mbps:
            raise NovaError("unsupported", "limits.net_mbps: machines of the qemu backend have no network")
        if spec.mounts:
            raise NovaError("unsupported", "mounts: a machine shares no folder with the host, so it has no volumes")
        if len(spec.layers) > boot.LAYERS_MOST:
            raise NovaError("unsupported", f"layers: a machine has at most {boot.LAYERS_MOST} drives for them")
        if spec.limits.vcpus and not self._groups.hard:
            raise NovaError("unsupported", "limits.vcpus: this host has no control groups to limit CPU time with")

    # -- instances -----------------------------------------------------------------------------------------------

    async def create(self, spec: InstanceSpec) -> Instance:
        """Raises NovaError ``unsupported``, ``runtime_unavailable``, ``capacity``, ``storage_full`` or
        ``dependency_unavailable``."""
        self._refuse_unenforceable(spec)
        accel = await self._accelerator()
        token = secrets.token_bytes(_TOKEN_BYTES)
        async with contextlib.AsyncExitStack() as undo:
            with _host_errors():
                folder = self._folder(spec.instance_id, undo)
                plan = await self._plan(spec, accel, token, folder)
                vm, wiring = await self._launch(plan, undo)
                await self._greet(vm, wiring.take_agent(), token)
            vm.undo = undo.pop_all()
        self._vms[spec.instance_id] = vm
        return vm

    async def _plan(self, spec: InstanceSpec, accel: Accelerator, token: bytes, folder: Path) -> Plan:
        """Makes its drives in ``folder``."""
        rootfs = (await asyncio.to_thread(self._images.require, spec.runtime, "ext4")).path
        drives = await to_its_end(lambda: self._fill(folder, spec))
        words = boot.command_line(spec, hashlib.sha256(token).hexdigest(), accel)
        return Plan(spec, accel, (rootfs, *drives), words)

    async def _accelerator(self) -> Accelerator:
        assert self._probing is not None, "a backend that works has been started"
        return await asyncio.shield(self._probing)

    def _folder(self, instance_id: str, undo: contextlib.AsyncExitStack) -> Path:
        self._drives.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self._drives / instance_id
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def _fill(self, folder: Path, spec: InstanceSpec) -> list[Path]:
        """Code and layers as drives of this machine, which it cannot write to."""
        drives = [folder / "code.ext4"]
        with tempfile.TemporaryDirectory() as empty:
            make_drive(spec.code or Path(empty), drives[0], self._options.code_drive_mb if spec.code else 0)
        for number, layer in enumerate(spec.layers):
            drives.append(folder / f"layer{number}.ext4")
            make_drive(layer.path, drives[-1], 0)
        return drives

    async def _launch(
        self, plan: Plan, undo: contextlib.AsyncExitStack, state: Path | None = None
    ) -> tuple[QemuVm, Wiring]:
        """A running machine, and what it is wired with, which is the caller's. ``state``: what it goes on from."""
        options, spec = self._options, plan.spec
        uid = None
        if self._privileged:
            uid = self._leases.take(USER, options.uid, options.uid + MACHINES_MOST - 1)
            undo.callback(self._leases.release, USER, uid)
        group = self._groups.create(spec.instance_id)
        undo.push_async_callback(_destroy, group)
        _limit(group, spec.limits)
        wiring = Wiring(options.kernels.require(), plan.drives, state)
        undo.callback(wiring.close)
        name = f"nova-{options.node}-{spec.instance_id}"
        size = boot.memory_mb(spec.limits), boot.vcpus(spec.limits)
        argv = boot.machine(program(options), name, plan.accel, plan.command_line, size, wiring)
        machine = await Machine.launch(spec.instance_id, [*boot.as_user(uid, options.gid), *argv], wiring, group)
        undo.push_async_callback(machine.end)
        return QemuVm(spec.instance_id, spec, machine, group, undo, _INIT_S[plan.accel]), wiring

    async def _greet(self, vm: QemuVm, wire: socket.socket, token: bytes, name: str = "") -> None:
        try:
            await vm.greet(wire, token, name or vm.instance_id, self._deadlines, self._options.boot_timeout_s)
        except NovaError as error:
            log.warning("a machine did not come up", reason=error.detail, last_words=vm.machine.console.last_words())
            raise

    # -- functions that are kept loaded --------------------------------------------------------------------------

    def snapshot_obstacle(self, runtime: str) -> str:
        if runtime not in SNAPSHOT_RUNTIMES:
            return f"workers of {runtime} cannot renew what must differ between instances"
        return self._reason

    async def snapshot(self, key: str, spec: InstanceSpec, init: InitSpec) -> None:
        """See :class:`Snapshotter`. The machine is saved when its agent has let go of the host, and ends then."""
        self._refuse_unenforceable(spec)
        accel = await self._accelerator()
        token = secrets.token_bytes(_TOKEN_BYTES)
        async with contextlib.AsyncExitStack() as undo:
            with _host_errors():
                work = await asyncio.to_thread(self._snapshots.workshop)
                undo.callback(shutil.rmtree, work, ignore_errors=True)
                plan = await self._plan(spec, accel, token, work)
                vm, wiring = await self._launch(plan, undo)
                await self._greet(vm, wiring.take_agent(), token)
                undo.callback(vm.link.close)
                await vm.channel.init(init)
                await vm.freeze()
                await vm.machine.save(work / STATE)
                await vm.machine.end()
                keep = partial(
                    self._snapshots.keep,
                    key,
                    work,
                    name=spec.instance_id,
                    token=token,
                    command_line=plan.command_line,
                    drives=plan.drives,
                )
                await to_its_end(keep)

    async def restore(self, key: str, spec: InstanceSpec) -> Instance | None:
        saved = await asyncio.to_thread(self._snapshots.find, key)
        if saved is None:
            return None
        self._refuse_unenforceable(spec)
        accel = await self._accelerator()
        try:
            async with contextlib.AsyncExitStack() as undo:
                with _host_errors():
                    plan = Plan(spec, accel, saved.drives, saved.command_line)
                    vm, wiring = await self._launch(plan, undo, saved.state)
                    vm.source = "snapshot"
                    await self._greet(vm, wiring.take_agent(), saved.token, saved.name)
                    undo.callback(vm.link.close)
                    await vm.thaw(secrets.token_bytes(_TOKEN_BYTES))
                vm.undo = undo.pop_all()
        except NovaError as error:
            if error.code != "dependency_unavailable":
                raise
            log.warning("a machine did not go on from its snapshot", reason=error.detail)
            return None
        self._vms[spec.instance_id] = vm
        return vm

    async def drop_snapshot(self, key: str) -> None:
        await to_its_end(partial(self._snapshots.drop, key))

    async def snapshot_memory(self, key: str) -> int:
        return await asyncio.to_thread(self._snapshots.size, key)

    # -- their end -----------------------------------------------------------------------------------------------

    async def stop(self, instance: Instance, *, reason: str) -> None:
        """Ask the agent, then end the process and give everything back, each step whatever became of those before."""
        if not isinstance(instance, QemuVm) or self._vms.pop(instance.instance_id, None) is None:
            return
        ending = asyncio.ensure_future(self._end(instance))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait({ending})
            raise
        log.debug("machine stopped", instance_id=instance.instance_id, reason=reason)

    async def _end(self, vm: QemuVm) -> None:
        try:
            async with vm.undo:
                if vm.link.usable:
                    await vm.link.stop(GRACE_MS)
                vm.link.close()
        except Exception:
            log.exception("a machine could not be ended in full; the next start removes the rest", vm=vm.instance_id)

    async def stats(self, instance: Instance) -> InstanceStats:
        """Zeros for an instance that has ended."""
        return instance.stats() if isinstance(instance, QemuVm) else InstanceStats()

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        now = asyncio.get_running_loop().time()
        lost = [vm for name, vm in self._vms.items() if name not in keep and now - vm.born > RECONCILE_AGE_S]
        for vm in lost:
            await self.stop(vm, reason="nobody owns it")
        return [vm.instance_id for vm in lost]


@contextlib.contextmanager
def _host_errors() -> Iterator[None]:
    """The host's troubles in the platform's words."""
    try:
        yield
    except OSError as error:
        text = f"no machine could be made: {error}"
        raise as_refusal(error) or NovaError("dependency_unavailable", text) from error


def _limit(group: Group, limits: Limits) -> None:
    memory = boot.memory_mb(limits) + boot.VMM_MB
    group.limit(memory << 20, limits.cpu_ceiling, limits.cpu_share, boot.threads(limits))


async def _destroy(group: Group) -> None:
    """The kernel lets go of a group a moment after its last process."""

    async def destroyed() -> bool:
        return await asyncio.to_thread(group.destroy)

    retrying = AsyncRetrying(
        retry=retry_if_result(lambda gone: not gone),
        wait=wait_fixed(0.01),
        stop=stop_after_delay(_GROUP_S),
        retry_error_callback=lambda _: False,
    )
    gone: bool = await retrying(destroyed)
    if not gone:
        log.warning("a control group is still held by the kernel")
