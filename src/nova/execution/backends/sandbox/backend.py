"""The sandbox backend: instances from templates, builds, limits, networks; everything it makes it also ends."""

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from nova.domain.function import Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution import volume_files
from nova.execution.admission import NodeMemory
from nova.execution.backends.base import (
    STRENGTH,
    Capabilities,
    CommandResult,
    CommandSpec,
    Enforced,
    InitSpec,
    Instance,
    InstanceSpec,
    InstanceStats,
    VolumeMount,
)
from nova.execution.backends.sandbox import commands, kernel, names, network
from nova.execution.backends.sandbox.cells import DONORS, TEMPLATE_TMP_MB, Cell, Cells, Kind, Toolchains, limits_of
from nova.execution.backends.sandbox.cgroup_layout import detect_layout
from nova.execution.backends.sandbox.client import LauncherClient, LauncherLost, LauncherRefused
from nova.execution.backends.sandbox.network import Network
from nova.execution.backends.sandbox.rules import check_policy
from nova.execution.backends.sandbox.sealed import Seals
from nova.execution.backends.sandbox.templates import SOON, Templates
from nova.service import Background

log = structlog.get_logger(__name__)

RESTART_WAIT_S = 10.0
"""How long a request waits for a launcher that is being restarted."""
TEMPLATES_MOST = 64
"""Templates of one kind after a burst, where an eighth of the memory that is free holds so many."""
TEMPLATE_MB = 8
RECONCILE_AGE_S = 30.0
"""An instance younger than this may not be known to its owner yet."""


@dataclass(frozen=True, slots=True)
class SandboxOptions:
    """``run_dir``: an existing directory for this daemon's mounts. ``node``: a name no other daemon on the host has.

    ``templates``: per (runtime, version) how many to keep ready. ``first_uid``: host users from here on belong to
    instances (as root). ``strict_limits``: refuse instances whose limits this host holds only softly.
    """

    run_dir: Path
    node: str
    templates: Mapping[tuple[str, str], int] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    """bootstraps that the launcher loads before it forks (``WorkerLaunch.module``)"""
    first_uid: int = 200_000
    subnet: str = network.DEFAULT_SUBNET
    cgroup_root: str = ""
    strict_limits: bool = False
    private_networks: bool = True
    """false: private networks are reachable only where an egress rule names them by address"""
    blocked: tuple[str, ...] = ()
    """IPv4 networks that no instance reaches, whatever its policy says"""
    resolvers: tuple[str, ...] = ()
    """name servers for egress rules by name; none: the host's"""
    runtimes: frozenset[str] | None = None
    """what may run here; None: whatever ``toolchains`` knows"""


class SandboxBackend:
    name = "sandbox"

    def __init__(self, options: SandboxOptions, toolchains: Toolchains) -> None:
        self._options = options
        self._toolchains = toolchains
        self._privileged = os.geteuid() == 0
        self._network: Network | None = None
        self._hard = False
        self._reason = "the sandbox has not been started"
        self._closing = False
        self._background = Background("sandbox")
        self._running = asyncio.Event()
        self._launcher = LauncherClient(self._heard, self._launcher_lost)
        self._cells = Cells(self._launcher, toolchains, None, None)
        self._templates: Templates[Kind, Cell] = Templates(self._cells.boot, self._cells.end, {})
        self._seals = Seals(self._cells, self._claim)
        self._claimed: dict[str, Cell] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Never fails: what is missing is said by :meth:`capabilities`, and instances are refused with it."""
        if self._privileged:
            self._network = await self._start_network()
        first_uid = self._options.first_uid + 1 if self._privileged else None
        self._cells = Cells(self._launcher, self._toolchains, self._network, first_uid)
        self._seals = Seals(self._cells, self._claim)
        online = not self.default_network().offline
        targets = {
            Kind(runtime, version, online): count for (runtime, version), count in self._options.templates.items()
        }
        self._templates = Templates(self._cells.boot, self._cells.end, targets, most=_most_templates())
        try:
            await self._start_launcher()
        except (LauncherRefused, OSError) as error:
            self._reason = str(error)
            log.error("the sandbox cannot work on this host; nova doctor says more", reason=self._reason)
            return
        await self._templates.start()

    async def _start_network(self) -> Network | None:
        options = self._options
        ways = Network(
            options.subnet,
            private=options.private_networks,
            blocked=options.blocked,
            resolvers=options.resolvers,
        )
        try:
            await ways.start()
        except (OSError, NovaError) as error:
            log.warning("instances are offline: this host cannot filter their network", reason=str(error))
            return None
        return ways

    async def _start_launcher(self) -> None:
        base = self._options.run_dir / "roots"
        base.mkdir(parents=True, exist_ok=True)
        self._resolv_conf.write_text(names.RESOLV_CONF)
        self._resolv_conf.chmod(0o644)
        modules = self._options.modules
        report = await self._launcher.start(
            {
                "base": str(base),
                "node": self._options.node,
                "cgroups": detect_layout(self._options.cgroup_root).as_dict(),
                "modules": [*modules, *(DONORS[name] for name in modules if name in DONORS)],
                "unprivileged": not self._privileged,
            }
        )
        self._hard = report["hard_limits"]
        self._reason = ""
        self._running.set()
        log.info("sandbox ready", hard_limits=self._hard, network=self._network is not None, swept=report["swept"])

    async def close(self) -> None:
        self._closing = True
        await self._background.close()
        if self._running.is_set():
            await self._templates.close()
            await asyncio.gather(*(self._cells.end(cell) for cell in list(self._claimed.values())))
            self._claimed.clear()
            await self._seals.close()
        await self._launcher.close()
        if self._network is not None:
            await self._network.close()
            self._network = None

    def _heard(self, event: dict[str, object]) -> None:
        self._cells.heard(event)

    def _launcher_lost(self) -> None:
        self._running.clear()
        self._cells.launcher_lost()
        if not self._closing and not self._reason:
            log.error("the launcher died; its instances are lost, a new one is started")
            self._background.spawn("restart", self._restart())

    async def _restart(self) -> None:
        delay = 0.1
        while True:
            try:
                await self._start_launcher()
                return
            except (LauncherRefused, OSError) as error:
                log.error("the launcher does not start", reason=str(error), retry_s=delay)
            await asyncio.sleep(delay)
            delay = min(10.0, delay * 2)

    # -- what it can do ------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        hard: Enforced = "hard" if self._hard else "soft"
        return Capabilities(
            available=not self._reason,
            reason=self._reason,
            isolation="container",
            enforces={
                "memory": hard,
                "cpu": "hard" if self._hard else "no",
                "pids": hard,
                "disk": "hard",
                "network_rules": "hard" if self._network is not None else "no",
                "net_io": "hard" if self._network is not None and self._network.shapes else "no",
                "disk_io": "no",
                "read_only_root": "hard",
                "user": "hard",
                "seccomp": "hard",
            },
            runtimes=self._options.runtimes,
            strength=STRENGTH[self.name],
            snapshot=self._privileged,
            template=True,
            layers=True,
            volumes=not volume_files.obstacle(),
        )

    def default_network(self) -> NetworkPolicy:
        """The policy of functions that name none: out and nothing in, or offline where that cannot be enforced."""
        return NetworkPolicy() if self._network is not None else NetworkPolicy(isolation_mode="strict")

    @property
    def _resolv_conf(self) -> Path:
        """What instances with rules by name see in place of the host's name servers."""
        return self._options.run_dir / "resolv.conf"

    @property
    def build_uid(self) -> int:
        """The host user that builds run as."""
        return self._options.first_uid if self._privileged else os.getuid()

    def _refuse_unenforceable(self, limits: Limits, policy: NetworkPolicy) -> None:
        if self._reason:
            raise NovaError("unsupported", f"the sandbox backend does not work on this host: {self._reason}")
        if not policy.offline and self._network is None:
            raise NovaError(
                "unsupported",
                f"network_policy.isolation_mode {policy.isolation_mode}: the sandbox backend cannot filter the network"
                " on this host; strict without rules (offline) is possible",
            )
        check_policy(policy)
        if not self._hard and self._options.strict_limits:
            raise NovaError("unsupported", "memory_mb: the sandbox backend holds limits only softly on this host")
        if limits.net_mbps and (self._network is None or not self._network.shapes):
            raise NovaError("unsupported", "limits.net_mbps: the sandbox backend cannot limit bandwidth on this host")
        if not self._hard and limits.vcpus:
            raise NovaError("unsupported", "vcpus: the sandbox backend cannot limit CPU time on this host")

    # -- instances -----------------------------------------------------------------------------------------------

    async def create(self, spec: InstanceSpec) -> Instance:
        self._refuse_unenforceable(spec.limits, spec.network)
        kind = Kind(spec.runtime, spec.runtime_version, online=not spec.network.offline)
        with _launcher_errors():
            await self._wait_running()
            cell = self._templates.take(kind)
            if cell is None:
                cell = await self._cells.boot(kind)
            else:
                cell.source, cell.runtime_us = "template", 0
            try:
                await self._claim(cell, spec)
            except BaseException:
                await self._cells.end(cell)
                raise
        return self._claimed_as(cell, spec)

    def _claimed_as(self, cell: Cell, spec: InstanceSpec) -> Cell:
        cell.instance_id = cell.link.instance_id = spec.instance_id
        self._claimed[spec.instance_id] = cell
        cell.ended.add_done_callback(lambda _: self._claimed.pop(spec.instance_id, None))
        return cell

    async def _claim(self, cell: Cell, spec: InstanceSpec) -> None:
        binds = [[str(spec.code), "/code"]] if spec.code is not None else []
        binds += [[str(layer.path), layer.target] for layer in spec.layers]
        if cell.slot is not None and self._network is not None:
            await self._network.restrict(cell.slot, spec.network, spec.limits.net_mbps)
            if cell.slot.server is not None:
                binds.append([str(self._resolv_conf), "/etc/resolv.conf"])
        tmp_mb = spec.limits.tmp_mb
        with _trees(spec.mounts) as trees:
            await self._launcher.request(
                "claim",
                fds=trees,
                instance=cell.name,
                binds=binds,
                volumes=[[mount.target, mount.read_only] for mount in spec.mounts],
                tmp_bytes=tmp_mb << 20 if tmp_mb != TEMPLATE_TMP_MB else None,
                limits=limits_of(spec.limits),
            )

    # -- functions that are kept loaded --------------------------------------------------------------------------

    def snapshot_obstacle(self, runtime: str) -> str:
        if not self._privileged:
            return "the sandbox backend keeps functions loaded only when the daemon runs as root"
        try:
            launch, _ = self._toolchains.launch(runtime, "")
        except NovaError as error:
            return error.detail
        return "" if launch.module in DONORS else f"workers of {runtime} cannot be forked with a function loaded"

    async def snapshot(self, key: str, spec: InstanceSpec, init: InitSpec) -> None:
        self._refuse_unenforceable(spec.limits, spec.network)
        with _launcher_errors():
            await self._wait_running()
            await self._seals.make(key, spec, init)

    async def restore(self, key: str, spec: InstanceSpec) -> Instance | None:
        with _launcher_errors():
            cell = await self._seals.restore(key)
        return None if cell is None else self._claimed_as(cell, spec)

    async def drop_snapshot(self, key: str) -> None:
        await self._seals.drop(key)

    async def snapshot_memory(self, key: str) -> int:
        cell = self._seals.cell(key)
        return 0 if cell is None else (await self.stats(cell)).memory_bytes

    async def stop(self, instance: Instance, *, reason: str) -> None:
        if isinstance(instance, Cell):
            how = await self._cells.end(instance)
            log.debug("instance stopped", instance_id=instance.instance_id, reason=reason, oom=how.out_of_memory)

    async def rest(self, instance: Instance) -> bool:
        """See :class:`~nova.execution.backends.base.Resting`."""
        if isinstance(instance, Cell) and not instance.ended.done():
            with contextlib.suppress(LauncherLost, LauncherRefused):
                reply = await self._launcher.request("rest", instance=instance.name)
                return bool(reply.body["taken"])
        return True

    async def stats(self, instance: Instance) -> InstanceStats:
        """Zeros for an instance that has ended."""
        if not isinstance(instance, Cell) or instance.ended.done():
            return InstanceStats()
        try:
            reply = await self._launcher.request("stats", instance=instance.name)
        except (LauncherLost, LauncherRefused):
            return InstanceStats()
        body = reply.body
        return InstanceStats(body["memory_bytes"], body["cpu_us"], body["pids"], body["oom_kills"])

    async def run(self, command: CommandSpec) -> CommandResult:
        """As :meth:`create` refuses; writable binds are given to the user of builds."""
        self._refuse_unenforceable(command.limits, NetworkPolicy(isolation_mode="strict"))
        with _launcher_errors():
            await self._wait_running()
            return await commands.run(self._launcher, self._cells, command, self.build_uid)

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        now = asyncio.get_running_loop().time()
        lost = [cell for name, cell in self._claimed.items() if name not in keep and now - cell.born > RECONCILE_AGE_S]
        for cell in lost:
            await self._cells.end(cell)
        return [cell.instance_id for cell in lost]

    async def _wait_running(self) -> None:
        try:
            async with asyncio.timeout(RESTART_WAIT_S):
                await self._running.wait()
        except TimeoutError:
            raise LauncherLost from None


def _most_templates() -> int:
    _, available = NodeMemory().measure()
    return max(SOON, min(TEMPLATES_MOST, (available >> 20) // 8 // TEMPLATE_MB))


@contextlib.contextmanager
def _trees(volumes: Iterable[VolumeMount]) -> Iterator[list[int]]:
    """A detached mount of each: whether the launcher's own mounts show it does not matter. Raises OSError."""
    trees: list[int] = []
    try:
        for volume in volumes:
            tree = kernel.open_tree(str(volume.path))
            trees.append(tree)
            if os.fstat(tree).st_dev == volume.path.parent.stat().st_dev:
                raise OSError(f"nothing is mounted at {volume.path}")
        yield trees
    finally:
        for tree in trees:
            os.close(tree)


@contextlib.contextmanager
def _launcher_errors() -> Iterator[None]:
    """The launcher's troubles in the platform's words."""
    try:
        yield
    except LauncherRefused as error:
        raise NovaError("capacity", f"no instance could be made: {error}", retry_after_s=1) from error
    except LauncherLost as error:
        raise NovaError("capacity", "the sandbox launcher is being restarted", retry_after_s=1) from error
