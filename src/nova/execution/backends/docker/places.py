"""Containers with an agent inside, and their lives: made, given a function's code and limits, ended, taken apart."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from nova.domain.function import Limits
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.docker.containers import Bind, Plan
from nova.execution.backends.docker.doorway import Doorway, peer
from nova.execution.backends.docker.engine import Engine, EngineLost, EngineRefused, Event, quietly
from nova.execution.backends.docker.groups import group_of
from nova.execution.backends.docker.images import EngineImages
from nova.execution.backends.docker.place import Ended, Kind, Place
from nova.execution.backends.docker.published import Published
from nova.execution.backends.docker.visits import Visits
from nova.execution.backends.sandbox import names
from nova.execution.backends.sandbox.network import Network
from nova.execution.channel import DirectChannel
from nova.execution.channel_control import ControlLost
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_ends import DeathCause
from nova.ids import new_id
from nova.service import Background

log = structlog.get_logger(__name__)

TEMPLATE_LIMITS: Final = Limits()
"""Limits of a container before it is claimed."""
BOOT_S: Final = 30.0
"""How long a container may take until its agent has connected."""
BOOTS: Final = 4
"""Containers that the engine is asked to start at once; more only make each slower."""
_DIE_S: Final = 10.0
"""How long a process may take to end that has got SIGKILL."""
_TELL_S: Final = 2.0
"""How long the engine may take to tell of a container that has ended."""


class Places:
    """Makes and ends containers of one node on one engine.

    ``visits`` None: nothing can be mounted into a container that runs, so each is made for its function. ``network`` None:
    no container has one. ``published``: agents are reached through ports, and none of the two is used.
    """

    def __init__(
        self,
        engine: Engine,
        images: EngineImages,
        *,
        node: str,
        run_dir: Path,
        seccomp: str,
        visits: Visits | None = None,
        network: Network | None = None,
        resolvers: Sequence[str] = (),
        published: Published | None = None,
    ) -> None:
        self._engine = engine
        self._images = images
        self._node = node
        self._run_dir = run_dir
        self._seccomp = seccomp
        self._visits = visits
        self._network = network
        self._published = published
        self._booting = asyncio.Semaphore(BOOTS)
        self._deadlines = Deadlines()
        self._background = Background("docker")
        self._open: dict[str, Place] = {}
        self._by_container: dict[str, Place] = {}
        self._online_conf = self._write("resolv.conf", "".join(f"nameserver {address}\n" for address in resolvers))
        self._offline_conf = self._write("offline.conf", "")
        self._named_conf = self._write("named.conf", names.RESOLV_CONF)

    def _write(self, name: str, text: str) -> Path:
        path = self._run_dir / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    @property
    def late(self) -> bool:
        """Whether code can come after the container has been started."""
        return self._visits is not None

    @property
    def names(self) -> frozenset[str]:
        """Of all that are there or on their way."""
        return frozenset(self._open)

    # -- making --------------------------------------------------------------------------------------------------

    async def boot(self, kind: Kind) -> Place:
        """A container that waits for a function. Raises EngineLost, EngineRefused, NovaError; leaves nothing behind then."""
        return await self._boot(kind, TEMPLATE_LIMITS, ())

    async def make(self, kind: Kind, spec: InstanceSpec) -> Place:
        """A container for this function alone. Raises as :meth:`boot`."""
        return await self._boot(kind, spec.limits, () if self.late else _binds(spec))

    async def _boot(self, kind: Kind, limits: Limits, binds: Sequence[Bind]) -> Place:
        image = await self._images.ensure(kind.runtime)
        place = Place(new_id(), kind, asyncio.get_running_loop().create_future(), AsyncExitStack())
        self._open[place.name] = place
        try:
            async with self._booting, asyncio.timeout(BOOT_S):
                await self._start(place, image, limits, binds)
        except BaseException as error:
            await self.end(place)
            if isinstance(error, TimeoutError):
                raise EngineRefused(0, f"no agent connected within {BOOT_S:g} s") from error
            if isinstance(error, OSError):
                raise EngineRefused(0, str(error)) from error
            raise
        return place

    async def _start(self, place: Place, image: str, limits: Limits, binds: Sequence[Bind]) -> None:
        token = secrets.token_bytes(32)
        door = None
        if self._published is None:
            door = Doorway(self._run_dir / place.name)
            place.undo.callback(door.remove)
        # Before the container, so that it happens after the last process of it is dead.
        place.undo.push_async_callback(self._disconnect, place)
        plan = Plan(
            name=place.name,
            node=self._node,
            image=image,
            token_sha256=hashlib.sha256(token).hexdigest(),
            door=door.folder if door is not None else None,
            resolv_conf=self._online_conf if place.kind.online else self._offline_conf,
            limits=limits,
            seccomp=self._seccomp,
            binds=binds,
            published=self._published,
        )
        # Not to be cancelled half way: the engine would make it all the same, and nobody would know its name.
        making = asyncio.ensure_future(self._engine.create(plan.container_name, plan.configuration()))
        place.undo.push_async_callback(self._remove, making)
        place.container = await asyncio.shield(making)
        self._by_container[place.container] = place
        place.undo.callback(self._by_container.pop, place.container)
        await self._engine.start(place.container)
        began = time.monotonic()
        connection = await (self._arrival(place, door) if door is not None else self._dial(place))
        try:
            if door is not None:
                self._see(place, connection)
            await self._connect_network(place)
        except BaseException:
            connection.close()
            raise
        await self._greet(place, connection, token)
        place.runtime_us = int((time.monotonic() - began) * 1e6)

    async def _arrival(self, place: Place, door: Doorway) -> socket.socket:
        """The agent's connection. Raises EngineRefused when the container ends before."""
        entering = asyncio.create_task(door.enter())
        try:
            either: set[asyncio.Future[Any]] = {entering, place.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return entering.result() if entering.done() else await self._ended_early(place)
        finally:
            if entering.cancel():
                await asyncio.wait({entering})

    async def _dial(self, place: Place) -> socket.socket:
        assert self._published is not None
        try:
            return await self._published.dial(self._engine, place.container, place.ended)
        except ControlLost:
            return await self._ended_early(place)

    async def _ended_early(self, place: Place) -> NoReturn:
        words = await self._engine.last_words(place.container)
        code = (await place.ended).code
        raise EngineRefused(0, f"the agent ended before it connected (exit code {code}): {words}")

    def _see(self, place: Place, connection: socket.socket) -> None:
        """Find the container's first process, where it is in sight, and watch it. Raises OSError, EngineRefused."""
        place.pid = peer(connection)
        if not place.pid:
            if self.late:
                raise EngineRefused(0, "its processes are out of this daemon's sight: another machine or pid namespace")
            return
        place.pidfd = os.pidfd_open(place.pid)
        place.undo.callback(os.close, place.pidfd)
        loop = asyncio.get_running_loop()
        loop.add_reader(place.pidfd, self._first_process_ended, place)
        place.undo.callback(loop.remove_reader, place.pidfd)
        place.group = group_of(place.pid)

    def _first_process_ended(self, place: Place) -> None:
        asyncio.get_running_loop().remove_reader(place.pidfd)
        place.dead.set()
        self._background.spawn("ended", self._bury(place))

    async def _bury(self, place: Place) -> None:
        """The engine tells how it ended; without a word from it nobody knows."""
        await asyncio.wait({place.ended}, timeout=_TELL_S)
        place.over(Ended(None))

    async def _connect_network(self, place: Place) -> None:
        if not place.kind.online:
            return
        if self._network is None or not place.pid:
            raise NovaError("unsupported", "network_policy: the docker backend cannot filter the network on this host")
        space = os.open(f"/proc/{place.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            place.slot = await self._network.lease(space)
        finally:
            os.close(space)

    async def _disconnect(self, place: Place) -> None:
        if place.slot is not None and self._network is not None:
            await self._network.release(place.slot)

    async def _greet(self, place: Place, connection: socket.socket, token: bytes) -> None:
        try:
            place.link = place.channel = await DirectChannel.connect(
                connection,
                token,
                place.name,
                kill=lambda: self.kill(place),
                death_cause=lambda: self._death_cause(place),
                deadlines=self._deadlines,
            )
        except (ControlLost, TimeoutError) as error:
            raise EngineRefused(0, f"the agent did not answer: {error}") from error
        place.undo.callback(place.link.close)

    # -- a function's own ----------------------------------------------------------------------------------------

    async def claim(self, place: Place, spec: InstanceSpec, *, fresh: bool) -> None:
        """Make a container the place of a function; ``fresh``: :meth:`make` has made it for that one.

        Raises OSError, NovaError; then the place has to be ended.
        """
        if place.slot is not None and self._network is not None:
            await self._network.restrict(place.slot, spec.network, spec.limits.net_mbps)
        if self._visits is None:
            return
        if not fresh and spec.limits != TEMPLATE_LIMITS:
            if place.group is None:
                raise NovaError("capacity", "the container's control group is not to be found", retry_after_s=1)
            place.group.limit(spec.limits)
        binds = _binds(spec)
        if place.slot is not None and place.slot.server is not None:
            binds.append(Bind(self._named_conf, "/etc/resolv.conf"))
        resize = not fresh and spec.limits.tmp_mb != TEMPLATE_LIMITS.tmp_mb
        if binds or resize:
            await self._visits.mount(place.pid, binds, spec.limits.tmp_mb if resize else None)

    # -- ending --------------------------------------------------------------------------------------------------

    def kill(self, place: Place) -> None:
        """SIGKILL to the first process; the kernel ends the rest. Harmless when it is dead."""
        if not place.kill() and place.container:
            self._background.spawn("kill", quietly(self._engine.kill(place.container)))

    async def end(self, place: Place) -> None:
        """Kill it and give back all that it held. Goes on to its end if the caller leaves."""
        if place.ending is None:
            place.ending = self._background.spawn("end", self._take_apart(place))
        await asyncio.shield(place.ending)

    async def _take_apart(self, place: Place) -> None:
        self.kill(place)
        try:
            if place.pidfd >= 0:
                async with asyncio.timeout(_DIE_S):
                    await place.dead.wait()
        except TimeoutError:
            log.error("a container does not end", name=place.name, pid=place.pid)
        try:
            await place.undo.aclose()
        except Exception:
            log.exception("a container was not taken apart in order", name=place.name)
        finally:
            place.pidfd = -1
            place.over(Ended(None))
            self._open.pop(place.name, None)

    async def _remove(self, making: "asyncio.Future[str]") -> None:
        await asyncio.wait({making})
        if making.exception() is None:
            await quietly(self._engine.remove(making.result()))

    async def _death_cause(self, place: Place) -> DeathCause:
        """Whether the kernel ended processes of this container because its memory was used up."""
        if not place.out_of_memory and place.gone:
            await asyncio.wait({place.ended}, timeout=_TELL_S)
            with contextlib.suppress(EngineLost, EngineRefused):
                state = (await self._engine.inspect(place.container))["State"]
                place.ran_out = place.ran_out or bool(state["OOMKilled"])
        return "out_of_memory" if place.out_of_memory else "unknown"

    # -- what the engine tells -----------------------------------------------------------------------------------

    def heard(self, event: Event) -> None:
        place = self._by_container.get(event.container)
        if place is None:
            return
        if event.action == "oom":
            # The kernel ended some process of it; what is left would go on without that one.
            place.ran_out = True
            self.kill(place)
        elif event.action == "die":
            place.over(Ended(event.exit_code, out_of_memory=place.ran_out))

    async def sweep(self) -> list[str]:
        """Remove every container of this node that is not of this process; returns their names. Raises EngineLost,
        EngineRefused."""
        removed = []
        for found in await self._engine.containers(f"nova.node={self._node}"):
            if found.labels.get("nova.instance") not in self._open:
                await self._engine.remove(found.container)
                removed.append(found.name)
        return removed

    async def close(self) -> None:
        await asyncio.gather(*(self.end(place) for place in list(self._open.values())))
        await self._background.close()


def _binds(spec: InstanceSpec) -> list[Bind]:
    """What a function sees of the host."""
    binds = [Bind(spec.code, "/code")] if spec.code is not None else []
    binds += [Bind(layer.path, layer.target) for layer in spec.layers]
    return binds + [Bind(mount.path, mount.target, mount.read_only) for mount in spec.mounts]
