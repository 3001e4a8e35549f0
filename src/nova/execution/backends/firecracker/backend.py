"""The Firecracker backend: every instance is a machine of its own, jailed, with its drives, network and agent.

Making one takes resources in a fixed order, each with its undo registered before the next is taken; stopping runs the undos
in reverse: the process ends first, then TAP, sockets, jail and drives go, at last the address and the user are given back.
"""

import asyncio
import contextlib
import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
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
from nova.execution.backends.firecracker import boot, leftovers
from nova.execution.backends.firecracker.fingerprint import fingerprint
from nova.execution.backends.firecracker.jail import Jail
from nova.execution.backends.firecracker.machine import Machine
from nova.execution.backends.firecracker.options import MACHINES_MOST, FirecrackerOptions, leases_node, missing
from nova.execution.backends.firecracker.vm import MicroVm, Reach, reach
from nova.execution.backends.sandbox.cgroup_layout import detect_layout
from nova.execution.backends.sandbox.cgroups import Group, Groups, NoGroups
from nova.execution.backends.vm.codedrive import make_drive
from nova.execution.backends.vm.leases import Leases
from nova.execution.backends.vm.network import VmNetwork
from nova.execution.backends.vm.snapshots import Kept, KeptMachines
from nova.execution.channel_deadlines import Deadlines
from nova.execution.images import ImageFile, Images
from nova.service import to_its_end

log = structlog.get_logger(__name__)

USER: Final = "vm-uid"
"""The kind of lease."""
GRACE_MS: Final = 1000
"""How long an agent has to end its workers."""
RECONCILE_AGE_S: Final = 30.0
"""An instance younger than this may not be known to its owner yet."""
_GROUP_S: Final = 2.0
_TOKEN_BYTES: Final = 32
STATE: Final = "state"
MEMORY: Final = "memory"


class FirecrackerBackend:
    name = "firecracker"

    def __init__(
        self, options: FirecrackerOptions, images: Images, *, reach: Reach = reach, home: int | None = None
    ) -> None:
        """``reach`` is how the agent of a started machine is reached; ``home`` a descriptor of the network namespace to put
        the bridge into, instead of this process's."""
        self._options = options
        self._images = images
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
        self._vms: dict[str, MicroVm] = {}
        self._kept = KeptMachines(options.snapshot_dir / options.node, options.snapshots_mb)

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
        return [*removed, *(f"snapshot {name}" for name in self._kept.sweep())]

    async def close(self) -> None:
        await asyncio.gather(*(self.stop(vm, reason="closing") for vm in list(self._vms.values())))
        await asyncio.to_thread(self._kept.close)
        await self._network.close()
        self._groups.close()
        self._reason = "the backend is closed"

    # -- what it can do ------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        runtimes = frozenset(await asyncio.to_thread(self._runtimes)) if not self._reason else frozenset()
        reason = self._reason or ("" if runtimes else "no runtime has an image; nova runtime build python makes one")
        network: Enforced = "hard" if self._online else "no"
        return Capabilities(
            available=not reason,
            reason=reason,
            isolation="vm",
            enforces={
                "memory": "hard",
                "cpu": "hard" if self._groups.hard else "no",
                "pids": "hard",
                "disk": "hard",
                "network_rules": network,
                "net_io": network,
                "read_only_root": "hard",
                "user": "hard",
                "seccomp": "no",
            },
            runtimes=runtimes,
            strength=STRENGTH[self.name],
            snapshot=any(not self.snapshot_obstacle(runtime) for runtime in runtimes),
            reload=True,
            layers=True,
        )

    def _runtimes(self) -> list[str]:
        found = []
        for runtime in self._options.runtimes:
            with contextlib.suppress(NovaError):
                if self._images.find(runtime, "ext4") is not None:
                    found.append(runtime)
        return found

    def _refuse_unenforceable(self, spec: InstanceSpec) -> None:
        if self._reason:
            raise NovaError("unsupported", f"the firecracker backend does not work on this host: {self._reason}")
        if not spec.network.offline and not self._online:
            text = "the firecracker backend cannot filter the network on this host; strict without rules is possible"
            raise NovaError("unsupported", f"network_policy.isolation_mode {spec.network.isolation_mode}: {text}")
        if spec.mounts:
            raise NovaError("unsupported", "mounts: a machine shares no folder with the host, so it has no volumes")
        if len(spec.layers) > boot.LAYERS_MOST:
            raise NovaError("unsupported", f"layers: a machine has at most {boot.LAYERS_MOST} drives for them")
        if spec.limits.vcpus and not self._groups.hard:
            raise NovaError("unsupported", "limits.vcpus: this host has no control groups to limit CPU time with")

    # -- instances -----------------------------------------------------------------------------------------------

    async def create(self, spec: InstanceSpec) -> Instance:
        """Raises NovaError ``unsupported``, ``runtime_unavailable``, ``capacity``, ``storage_full`` or
        ``dependency_unavailable``; the console of a machine that did not come up is kept in the log folder."""
        self._refuse_unenforceable(spec)
        image = await self._image(spec)
        async with contextlib.AsyncExitStack() as undo:
            vm = await self._boot(spec, image, secrets.token_bytes(_TOKEN_BYTES), undo)
            vm.undo = undo.pop_all()
        self._vms[spec.instance_id] = vm
        return vm

    async def _image(self, spec: InstanceSpec) -> ImageFile:
        return await asyncio.to_thread(self._images.require, spec.runtime, "ext4")

    async def _boot(
        self, spec: InstanceSpec, image: ImageFile, token: bytes, undo: contextlib.AsyncExitStack
    ) -> MicroVm:
        with _host_errors():
            vm = await self._prepare(spec, undo)
            await to_its_end(lambda: self._fill(vm.machine.jail, spec, image.path))
            digest = hashlib.sha256(token).hexdigest()
            initrd = self._options.initrd is not None
            await vm.machine.api.configure(boot.setup(spec, digest, self._options.vsock_port, initrd=initrd))
            await vm.machine.api.start()
            await self._greet(vm, token)
        return vm

    async def _prepare(self, spec: InstanceSpec, undo: contextlib.AsyncExitStack) -> MicroVm:
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
        undo.push_async_callback(_destroy, group)
        _limit(group, spec.limits)
        machine = await Machine.launch(jail, line.path, group)
        undo.push_async_callback(machine.end)
        return MicroVm(spec.instance_id, spec, machine, group, undo)

    def _fill(self, jail: Jail, spec: InstanceSpec, rootfs: Path) -> None:
        """Kernel and root are shared; code and layers are drives of this machine, which it cannot write to."""
        jail.share(self._options.kernel, boot.KERNEL)
        if self._options.initrd is not None:
            jail.share(self._options.initrd, boot.INITRD)
        jail.share(rootfs, boot.ROOTFS)
        with tempfile.TemporaryDirectory() as empty:
            make_drive(spec.code or Path(empty), jail.root / boot.CODE, self._options.code_drive_mb if spec.code else 0)
        for number, layer in enumerate(spec.layers):
            make_drive(layer.path, jail.root / boot.layer_file(number), 0)
        for name in boot.own_drives(spec):
            jail.lend(name)

    async def _greet(self, vm: MicroVm, token: bytes, name: str = "") -> None:
        limit_s = self._options.boot_timeout_s
        try:
            await vm.greet(self._reach, self._options.vsock_port, token, self._deadlines, limit_s, name=name)
        except NovaError as error:
            log.warning("a machine did not come up", reason=error.detail, last_words=vm.machine.console.last_words())
            with contextlib.suppress(OSError):
                vm.machine.console.save(self._options.log_dir / f"{vm.machine.jail.name}.log")
            raise

    # -- functions that are kept loaded --------------------------------------------------------------------------

    def snapshot_obstacle(self, runtime: str) -> str:
        if self._reason:
            return self._reason
        try:
            forks = self._images.launch(runtime).kind == "fork"
        except NovaError as error:
            return error.detail
        return "" if forks else f"workers of {runtime} cannot renew what must differ between instances"

    async def snapshot(self, key: str, spec: InstanceSpec, init: InitSpec) -> None:
        """See :class:`Snapshotter`. A machine of its own loads the function, lets go of this host, is written to disk and
        ends."""
        self._refuse_unenforceable(spec)
        image = await self._image(spec)
        token = secrets.token_bytes(_TOKEN_BYTES)
        async with contextlib.AsyncExitStack() as undo:
            work = await asyncio.to_thread(self._kept.workshop)
            undo.push_async_callback(to_its_end, partial(shutil.rmtree, work, ignore_errors=True))
            vm = await self._boot(spec, image, token, undo)
            undo.callback(vm.link.close)
            await vm.channel.init(init)
            await vm.freeze()
            with _host_errors():
                await vm.machine.api.pause()
                await vm.machine.api.create_snapshot(STATE, MEMORY)
                await vm.machine.end()
                await to_its_end(lambda: self._collect(vm.machine.jail, spec, work))
                made_with = await self._fingerprint(image, spec)
                keep = partial(self._kept.keep, key, work, name=spec.instance_id, token=token, fingerprint=made_with)
                await to_its_end(keep)

    def _collect(self, jail: Jail, spec: InstanceSpec, work: Path) -> None:
        """Take what belongs to the machine out of its jail; others may read it there, in jails of their own."""
        for name in (STATE, MEMORY, *boot.own_drives(spec)):
            jail.lend(name)
            shutil.move(jail.root / name, work / name)

    async def _fingerprint(self, image: ImageFile, spec: InstanceSpec) -> str:
        options = self._options
        return await asyncio.to_thread(fingerprint, options.programs.firecracker, options.kernel, image, spec)

    async def restore(self, key: str, spec: InstanceSpec) -> Instance | None:
        """See :class:`Snapshotter`. A failure is no reason not to boot, so it is logged and there is None."""
        self._refuse_unenforceable(spec)
        image = await self._image(spec)
        kept = await asyncio.to_thread(self._kept.find, key, await self._fingerprint(image, spec))
        if kept is None:
            return None
        try:
            async with contextlib.AsyncExitStack() as undo:
                with _host_errors():
                    vm = await self._resume(spec, image.path, kept, undo)
                vm.undo = undo.pop_all()
        except NovaError as error:
            if error.code != "dependency_unavailable":
                raise
            log.warning("a machine did not go on from its snapshot", reason=error.detail)
            return None
        self._vms[spec.instance_id] = vm
        return vm

    async def _resume(self, spec: InstanceSpec, rootfs: Path, kept: Kept, undo: contextlib.AsyncExitStack) -> MicroVm:
        vm = await self._prepare(spec, undo)
        jail = vm.machine.jail
        await to_its_end(lambda: _share_all(jail, {boot.ROOTFS: rootfs, **{path.name: path for path in kept.files}}))
        await vm.machine.api.load_snapshot(STATE, MEMORY, resume=True)
        vm.source = "snapshot"
        await self._greet(vm, kept.token, kept.name)
        undo.callback(vm.link.close)
        await vm.thaw(secrets.token_bytes(_TOKEN_BYTES))
        return vm

    async def drop_snapshot(self, key: str) -> None:
        await to_its_end(partial(self._kept.drop, key))

    async def snapshot_memory(self, key: str) -> int:
        return await asyncio.to_thread(self._kept.size, key)

    # -- their end -----------------------------------------------------------------------------------------------

    async def stop(self, instance: Instance, *, reason: str) -> None:
        """Ask the agent, then end the process and give everything back, each step whatever became of those before."""
        if not isinstance(instance, MicroVm) or self._vms.pop(instance.instance_id, None) is None:
            return
        ending = asyncio.ensure_future(self._end(instance))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait({ending})
            raise
        log.debug("machine stopped", instance_id=instance.instance_id, reason=reason)

    async def _end(self, vm: MicroVm) -> None:
        try:
            async with vm.undo:
                if vm.link.usable:
                    await vm.link.stop(GRACE_MS)
                vm.link.close()
        except Exception:
            log.exception(
                "a machine could not be ended in full; the next start removes the rest", machine=vm.machine.jail.name
            )

    async def stats(self, instance: Instance) -> InstanceStats:
        """Zeros for an instance that has ended."""
        return instance.stats() if isinstance(instance, MicroVm) else InstanceStats()

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        now = asyncio.get_running_loop().time()
        lost = [vm for name, vm in self._vms.items() if name not in keep and now - vm.born > RECONCILE_AGE_S]
        for vm in lost:
            await self.stop(vm, reason="nobody owns it")
        return [vm.instance_id for vm in lost]


def _limit(group: Group, limits: Limits) -> None:
    memory = boot.memory_mb(limits) + boot.VMM_MB
    group.limit(memory << 20, limits.cpu_ceiling, limits.cpu_share, boot.VMM_THREADS + boot.vcpus(limits))


def _share_all(jail: Jail, files: Mapping[str, Path]) -> None:
    for name, path in files.items():
        jail.share(path, name)


@contextlib.contextmanager
def _host_errors() -> Iterator[None]:
    """The host's troubles in the platform's words."""
    try:
        yield
    except OSError as error:
        raise as_refusal(error) or NovaError("dependency_unavailable", f"no machine could be made: {error}") from error


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
