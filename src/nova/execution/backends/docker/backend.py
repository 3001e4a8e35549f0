"""The Docker backend: instances in containers, from templates where the host allows it; everything it makes it also ends."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from nova.errors import NovaError
from nova.execution.backends.base import STRENGTH, Capabilities, Enforced, Instance, InstanceSpec, InstanceStats
from nova.execution.backends.docker.containers import LABEL_NODE
from nova.execution.backends.docker.engine import Engine, EngineLost, EngineRefused
from nova.execution.backends.docker.images import EngineImages, ImageFiles
from nova.execution.backends.docker.place import Kind, Place
from nova.execution.backends.docker.places import Places
from nova.execution.backends.docker.published import Published
from nova.execution.backends.docker.seccomp import profile
from nova.execution.backends.docker.visits import Visits
from nova.execution.backends.sandbox.network import DEFAULT_SUBNET, Network
from nova.execution.backends.sandbox.rootfs import host_resolvers
from nova.execution.backends.sandbox.rules import check_policy
from nova.execution.backends.sandbox.templates import Templates
from nova.service import Background

log = structlog.get_logger(__name__)

RECONCILE_AGE_S: Final = 30.0
"""An instance younger than this may not be known to its owner yet."""
_FIRST_LOOK_S: Final = 5.0
_AGAIN: Final = wait_exponential(multiplier=0.2, max=5.0)


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """``run_dir``: a directory of this daemon alone, made if missing. ``node``: a name no other daemon on the engine has.

    ``templates``: so many containers stand ready for each runtime that is in use. ``runtimes``: those that may have an image.
    """

    run_dir: Path
    node: str
    runtimes: tuple[str, ...]
    host: str = "unix:///var/run/docker.sock"
    image_prefix: str = "nova-runtime-"
    templates: int = 1
    published: Published | None = None
    """reach agents through ports on the loopback instead of shared sockets; then there are no templates and no egress"""
    subnet: str = DEFAULT_SUBNET
    private_networks: bool = True
    """false: private networks are reachable only where an egress rule names them by address"""
    blocked: tuple[str, ...] = ()
    """IPv4 networks that no instance reaches, whatever its policy says"""
    resolvers: tuple[str, ...] = ()
    """name servers for egress rules by name; none: the host's"""


class DockerBackend:
    name = "docker"

    def __init__(self, options: DockerOptions, images: ImageFiles) -> None:
        self._options = options
        self._engine = Engine(options.host)
        self._images = EngineImages(self._engine, images, options.image_prefix)
        self._info: dict[str, Any] = {}
        self._reason = "the Docker backend has not been started"
        self._obstacle = ""
        self._visits: Visits | None = None
        self._network: Network | None = None
        self._places: Places | None = None
        self._templates: Templates[Kind, Place] | None = None
        self._background = Background("docker")
        self._claimed: dict[str, Place] = {}

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Never fails: what is missing is said by :meth:`capabilities`. An engine that is not there is looked for again and
        again, and used from the moment it answers."""
        options = self._options
        await asyncio.to_thread(_empty, options.run_dir)
        if options.published is not None:
            await self._close_off(options.published)
        elif os.geteuid() == 0:
            await self._start_as_root()
        self._places = Places(
            self._engine,
            self._images,
            node=options.node,
            run_dir=options.run_dir,
            seccomp=profile(),
            visits=self._visits,
            network=self._network,
            resolvers=options.resolvers or host_resolvers(),
            published=options.published,
        )
        keep = options.templates if self._places.late else 0
        self._templates = Templates(self._places.boot, self._places.end, {}, keep=keep)
        await self._templates.start()
        connected = asyncio.Event()
        self._background.spawn("watch", self._watch(self._places, connected))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_LOOK_S):
                await connected.wait()

    async def _close_off(self, published: Published) -> None:
        try:
            await published.close_off()
        except OSError as error:
            self._obstacle = f"docker.channel tcp: containers cannot be kept off the network here: {error}"

    async def _start_as_root(self) -> None:
        visits = Visits()
        try:
            await visits.start()
        except OSError as error:
            visits.close()
            log.warning("containers start anew for each instance: this host cannot mount into them", reason=str(error))
            return
        self._visits = visits
        options = self._options
        network = Network(
            options.subnet,
            private=options.private_networks,
            blocked=options.blocked,
            resolvers=options.resolvers,
            spare=0,
        )
        try:
            await network.start()
        except (OSError, NovaError) as error:
            log.warning("containers are offline: this host cannot filter their network", reason=str(error))
            return
        self._network = network

    async def close(self) -> None:
        await self._background.close()
        if self._templates is not None:
            await self._templates.close()
        if self._places is not None:
            await self._places.close()
        await self._engine.close()
        if self._network is not None:
            await self._network.close()
            self._network = None
        if self._visits is not None:
            self._visits.close()
            self._visits = None
        self._reason = "the Docker backend has been closed"

    async def _watch(self, places: Places, connected: asyncio.Event) -> None:
        """Stay connected to the engine and hear what it tells of our containers."""
        while True:
            since = await self._connect(places, connected)
            reason = "it hung up"
            try:
                async for event in self._engine.events(f"{LABEL_NODE}={self._options.node}", since):
                    places.heard(event)
            except (EngineLost, EngineRefused) as error:
                reason = str(error)
            self._reason = f"the Docker engine at {self._options.host} was lost: {reason}"
            log.error("the Docker engine was lost; it is looked for", address=self._options.host, reason=reason)

    async def _connect(self, places: Places, connected: asyncio.Event) -> str:
        """Wait for the engine; returns its time from which on events are to be told."""
        async for attempt in AsyncRetrying(retry=retry_if_exception_type((EngineLost, EngineRefused)), wait=_AGAIN):
            with attempt:
                try:
                    info = await self._engine.open()
                    self._images.forget()
                    swept = await places.sweep()
                    if self._options.published is not None:
                        await self._options.published.ensure(self._engine)
                except (EngineLost, EngineRefused) as error:
                    self._reason = f"no Docker engine answers at {self._options.host}: {error}"
                    connected.set()
                    raise
        self._info = info
        self._reason = self._obstacle or _unfit(info)
        log.info("Docker engine found", version=info.get("ServerVersion"), fit=not self._reason, swept=swept)
        connected.set()
        return str(int(datetime.fromisoformat(info["SystemTime"]).timestamp()))

    # -- what it can do ------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        network = self._network
        late = self._places is not None and self._places.late
        return Capabilities(
            available=not self._reason,
            reason=self._reason,
            isolation="container",
            enforces={
                "memory": self._memory(),
                "cpu": "hard" if self._info.get("CpuCfsQuota") else "no",
                "pids": "hard" if self._info.get("PidsLimit") else "no",
                "disk": "hard",
                "network_rules": "hard" if network is not None else "no",
                "net_io": "hard" if network is not None and network.shapes else "no",
                "disk_io": "no",
                "read_only_root": "hard",
                "user": "hard",
                "seccomp": "hard",
            },
            runtimes=await asyncio.to_thread(self._images.runtimes, self._options.runtimes),
            strength=STRENGTH[self.name],
            template=late and self._options.templates > 0,
            reload=True,
            layers=True,
            volumes=late,
        )

    @property
    def reason(self) -> str:
        """Why it makes no instances now; empty when it does."""
        return self._reason

    def template_counts(self) -> dict[Kind, tuple[int, int]]:
        """By kind: how many containers stand ready, and how many there should be."""
        return self._templates.counts() if self._templates is not None else {}

    def _memory(self) -> Enforced:
        if not self._info.get("MemoryLimit"):
            return "no"
        # Without accounting of swap a container may hold more than its limit there.
        return "hard" if self._info.get("SwapLimit") or not _swaps() else "soft"

    def _refuse_unenforceable(self, spec: InstanceSpec) -> None:
        if self._reason:
            raise NovaError("unsupported", f"the docker backend does not work on this host: {self._reason}")
        if not spec.network.offline and self._network is None:
            raise NovaError(
                "unsupported",
                f"network_policy.isolation_mode {spec.network.isolation_mode}: the docker backend cannot filter the network"
                " on this host; strict without rules (offline) is possible",
            )
        check_policy(spec.network)
        if spec.limits.net_mbps and (self._network is None or not self._network.shapes):
            raise NovaError("unsupported", "limits.net_mbps: the docker backend cannot limit bandwidth here")

    # -- instances -----------------------------------------------------------------------------------------------

    async def create(self, spec: InstanceSpec) -> Instance:
        self._refuse_unenforceable(spec)
        assert self._places is not None
        with self._engine_errors():
            place, fresh = await self._place(self._places, spec)
            try:
                await self._places.claim(place, spec, fresh=fresh)
            except BaseException:
                await self._places.end(place)
                raise
        place.instance_id = place.link.instance_id = spec.instance_id
        self._claimed[spec.instance_id] = place
        place.ended.add_done_callback(lambda _: self._claimed.pop(spec.instance_id, None))
        return place

    async def _place(self, places: Places, spec: InstanceSpec) -> tuple[Place, bool]:
        """A container for ``spec``, and whether it was made for it just now."""
        assert self._templates is not None
        kind = Kind(spec.runtime, spec.runtime_version, online=not spec.network.offline)
        if places.late and self._options.templates:
            place = self._templates.take(kind)
            if place is not None:
                place.source, place.runtime_us = "template", 0
                return place, False
        return await places.make(kind, spec), True

    async def stop(self, instance: Instance, *, reason: str) -> None:
        if isinstance(instance, Place) and self._places is not None:
            await self._places.end(instance)
            log.debug("instance stopped", instance_id=instance.instance_id, reason=reason)

    async def stats(self, instance: Instance) -> InstanceStats:
        """Zeros for an instance that has ended, or whose control group is not on this host."""
        return instance.stats() if isinstance(instance, Place) else InstanceStats()

    async def reconcile(self, keep: Collection[str]) -> list[str]:
        if self._places is None:
            return []
        now = asyncio.get_running_loop().time()
        lost = [
            place for name, place in self._claimed.items() if name not in keep and now - place.born > RECONCILE_AGE_S
        ]
        for place in lost:
            await self._places.end(place)
        swept: list[str] = []
        with contextlib.suppress(EngineLost, EngineRefused):
            swept = await self._places.sweep()
        return [*(place.instance_id for place in lost), *swept]

    @contextlib.contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """The engine's troubles in the platform's words."""
        try:
            yield
        except (EngineRefused, OSError) as error:
            self._images.forget()
            raise NovaError("capacity", f"no container could be made: {error}", retry_after_s=1) from error
        except EngineLost as error:
            raise NovaError("capacity", f"the Docker engine does not answer: {error}", retry_after_s=1) from error


def _unfit(info: dict[str, Any]) -> str:
    """Why this engine's containers do not isolate as they must; empty when they do."""
    if info.get("OSType") != "linux":
        return f"the Docker engine runs {info.get('OSType')} containers"
    if not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
        return "the Docker engine cannot filter system calls (seccomp)"
    return ""


def _swaps() -> bool:
    try:
        return len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return True


def _empty(folder: Path) -> None:
    """Doors of a predecessor lead nowhere any more."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o711)
