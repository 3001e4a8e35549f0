"""Isolated places and their lives: made by the launcher, connected to the daemon, ended through a process descriptor."""

import asyncio
import contextlib
import hashlib
import itertools
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from nova.agent.config import AgentConfig, WorkerLaunch
from nova.domain.call import StartSource
from nova.domain.function import Limits
from nova.errors import NovaError
from nova.execution import processes
from nova.execution.backends.base import Channel
from nova.execution.backends.sandbox.client import LauncherClient, LauncherLost, LauncherRefused
from nova.execution.backends.sandbox.network import Network, Slot
from nova.execution.backends.sandbox.rootfs import host_resolvers, plan_root
from nova.execution.channel import DirectChannel
from nova.execution.channel_control import ControlLost
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_ends import DeathCause
from nova.execution.inside import launch_inside
from nova.ids import new_id

TEMPLATE_TMP_MB = Limits().tmp_mb
"""``/tmp`` of an instance before it is claimed; a claim resizes it when the function asks for another size."""


DONORS: Final = {"nova.runtimes.python.bootstrap": "nova.execution.backends.sandbox.donor"}
"""Workers that can be forked with a function loaded: their module, and the one that a snapshot's worker runs."""
_NETWORK: Final = 3
"""Where the network is among a place's namespaces (the launcher's ``ENTERED``)."""


def limits_of(limits: Limits) -> dict[str, Any]:
    """The limits as the launcher takes them."""
    return {
        "memory_bytes": limits.memory_mb << 20,
        "vcpus": limits.cpu_ceiling,
        "cpu_share": limits.cpu_share,
        "pids": limits.pids,
    }


@dataclass(frozen=True, slots=True)
class Kind:
    """What must be equal for one template to serve: everything that is decided before the code is known."""

    runtime: str
    version: str
    online: bool

    @property
    def root(self) -> str:
        return f"{self.runtime}-{self.version}-{'online' if self.online else 'offline'}"


class Toolchains(Protocol):
    """What the backend asks about runtimes."""

    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        """How a worker starts, and the host paths it needs to see. Raises NovaError for a runtime that is not here."""
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """How a place ended. ``status`` is what its first process reported before; ``lost`` that the launcher died."""

    code: int | None
    status: str = ""
    out_of_memory: bool = False
    lost: bool = False

    @property
    def failure(self) -> str:
        """Why it did not come up; empty when it did."""
        return next((line[6:] for line in self.status.splitlines() if line.startswith("error ")), "")


@dataclass(slots=True, eq=False)
class Cell:
    """One living instance. It is an :class:`Instance` once it is claimed."""

    name: str
    kind: Kind
    pid: int
    pidfd: int
    uid: int
    slot: Slot | None
    ended: "asyncio.Future[Ended]"
    link: DirectChannel = field(init=False)
    channel: Channel = field(init=False)
    instance_id: str = ""
    source: StartSource = "boot"
    runtime_us: int = 0
    owns_uid: bool = True
    """false: the user is that of the place above it"""
    born: float = field(default_factory=time.monotonic)

    def kill(self) -> None:
        """SIGKILL to the first process; the kernel ends the rest. Harmless when it is dead."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def keep_to(self, processors: Collection[int]) -> None:
        """See :class:`~nova.execution.backends.base.Movable`."""
        if not self.ended.done():
            processes.keep_to(self.pid, processors)


class Cells:
    """Makes and ends places for one launcher."""

    def __init__(
        self, launcher: LauncherClient, toolchains: Toolchains, network: Network | None, first_uid: int | None
    ) -> None:
        """``first_uid`` None: an ordinary user, every place has the daemon's own user outside."""
        self._launcher = launcher
        self._toolchains = toolchains
        self._network = network
        self._uids = Uids(first_uid) if first_uid is not None else None
        self._deadlines = Deadlines()
        self._roots: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Future[Ended]] = {}
        self._ready: dict[str, asyncio.Event] = {}

    # -- what the launcher tells ---------------------------------------------------------------------------------

    def heard(self, event: dict[str, Any]) -> None:
        if event["event"] == "ready" and (ready := self._ready.pop(event["instance"], None)) is not None:
            ready.set()
        if event["event"] == "exit":
            self._end(event["instance"], Ended(event["code"], event["status"], event["oom"]))

    def launcher_lost(self) -> None:
        """Every place is gone, or going: its first process dies with the launcher."""
        self._roots.clear()
        for name in list(self._ends):
            self._end(name, Ended(None, lost=True))

    def _end(self, name: str, ended: Ended) -> None:
        future = self._ends.pop(name, None)
        if (ready := self._ready.pop(name, None)) is not None:
            ready.set()
        if future is not None and not future.done():
            future.set_result(ended)

    def expect(self, name: str) -> "asyncio.Future[Ended]":
        """The end of ``name``. Must be called before the launcher is asked to make it."""
        future: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._ends[name] = future
        return future

    # -- making and ending ---------------------------------------------------------------------------------------

    async def boot(self, kind: Kind, *, donor: bool = False) -> Cell:
        """A sealed place: agent connected, worker standing, no code. Leaves nothing behind on failure.

        ``donor``: one whose worker, once loaded, is forked into other places (:meth:`inherit`).
        Raises LauncherLost, LauncherRefused, NovaError.
        """
        launch, tools = self._toolchains.launch(kind.runtime, kind.version)
        launch = launch_inside(launch)
        if donor:
            launch = replace(launch, module=DONORS[launch.module])
        await self._root(kind, tools)
        async with contextlib.AsyncExitStack() as undo:
            slot: Slot | None = None
            if kind.online:
                if self._network is None:
                    raise NovaError("unsupported", "this host cannot filter an instance's network")
                slot = await self._network.lease()
                undo.push_async_callback(self._network.release, slot)
            uid = self._lease_uid()
            undo.callback(self._release_uid, uid)
            cell = await self._spawn(kind, launch, slot, uid, undo, donor=donor)
            undo.pop_all()
            return cell

    async def inherit(self, above: Cell, line: int, prepare: Callable[[Cell], Awaitable[None]]) -> Cell:
        """A place like :meth:`boot`'s whose worker is a fork of the donor ``above``; ``line`` is the line of that one's
        worker. ``prepare`` is called before the fork, with a place that has no agent connected yet.

        Raises LauncherLost, LauncherRefused, NovaError, OSError.
        """
        launch, _ = self._toolchains.launch(above.kind.runtime, above.kind.version)
        name = new_id()
        config, api_token = self._agent(name, above.kind, launch_inside(launch))
        ended, ready = self.expect(name), asyncio.Event()
        self._ready[name] = ready
        async with contextlib.AsyncExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            given, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs, given, taken:
                reply = await self._launcher.request(
                    "heir",
                    fds=[theirs.fileno(), taken.fileno()],
                    beneath=above.name,
                    **_told(config),
                    root=above.kind.root,
                    tmp_bytes=TEMPLATE_TMP_MB << 20,
                    uid=above.uid,
                )
                cell = Cell(name, above.kind, reply.body["pid"], reply.fds[0], above.uid, None, ended)
                cell.source, cell.owns_uid = "snapshot", False
                undo.push_async_callback(self._reap, cell)
                theirs.close()
                taken.close()
                await ready.wait()
                spaces = await self._launcher.request("namespaces", instance=name)
                try:
                    if above.slot is not None and self._network is not None:
                        cell.slot = await self._network.lease(spaces.fds[_NETWORK])
                        undo.push_async_callback(self._network.release, cell.slot)
                    await prepare(cell)
                    _send_fds(line, [given.fileno(), *spaces.fds])
                finally:
                    spaces.close()
            cell.link = cell.channel = await self._connect(cell, ours, config, api_token)
            undo.pop_all()
        return cell

    async def _spawn(
        self,
        kind: Kind,
        launch: WorkerLaunch,
        slot: Slot | None,
        uid: int,
        undo: contextlib.AsyncExitStack,
        *,
        donor: bool = False,
    ) -> Cell:
        name = new_id()
        config, api_token = self._agent(name, kind, launch)
        ended = self.expect(name)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            reply = await self._launcher.request(
                "spawn",
                fds=[theirs.fileno(), *([slot.namespace] if slot else [])],
                donor=donor,
                **_told(config),
                root=kind.root,
                tmp_bytes=TEMPLATE_TMP_MB << 20,
                limits=limits_of(Limits()),
                uid=uid,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        cell = Cell(name, kind, reply.body["pid"], reply.fds[0], uid, slot, ended)
        undo.push_async_callback(self._reap, cell)
        began = time.monotonic()
        cell.link = cell.channel = await self._connect(cell, ours, config, api_token)
        cell.runtime_us = int((time.monotonic() - began) * 1e6)
        return cell

    @staticmethod
    def _agent(name: str, kind: Kind, launch: WorkerLaunch) -> tuple[AgentConfig, str]:
        """What the agent of a place is told, and the token of its guest API. For its control socket it needs none: nobody else
        has the other end."""
        token = secrets.token_hex(24)
        digest = hashlib.sha256(token.encode()).hexdigest()
        return AgentConfig(b"", name, kind.runtime, launch, api_digest=digest), token

    async def _connect(self, cell: Cell, ours: socket.socket, config: AgentConfig, api_token: str) -> DirectChannel:
        try:
            return await DirectChannel.hear(
                ours,
                config,
                api_token,
                kill=cell.kill,
                death_cause=lambda: self.death_cause(cell),
                deadlines=self._deadlines,
            )
        except (ControlLost, TimeoutError) as error:
            cell.kill()
            how = await asyncio.shield(cell.ended)
            raise LauncherRefused(how.failure or f"the agent did not answer: {error}") from error

    async def end(self, cell: Cell) -> Ended:
        """Kill, wait until every process is dead, and give back what the place held."""
        cell.kill()
        how = await asyncio.shield(cell.ended)
        if how.lost and cell.pidfd >= 0:
            await _dead(cell.pidfd)
        if cell.pidfd >= 0:
            cell.link.close()
            os.close(cell.pidfd)
            cell.pidfd = -1
            if cell.owns_uid:
                self._release_uid(cell.uid)
            if cell.slot is not None and self._network is not None:
                await self._network.release(cell.slot)
        return how

    async def _reap(self, cell: Cell) -> None:
        """Undo a spawn: as :meth:`end`, but user id and network are given back by whoever took them."""
        cell.kill()
        await asyncio.shield(cell.ended)
        os.close(cell.pidfd)
        cell.pidfd = -1

    async def death_cause(self, cell: Cell) -> DeathCause:
        """Whether the kernel ended processes of this place because its memory was used up."""
        if cell.ended.done():
            out_of_memory = cell.ended.result().out_of_memory
        else:
            try:
                reply = await self._launcher.request("stats", instance=cell.name)
                out_of_memory = bool(reply.body["oom_kills"])
            except LauncherRefused:
                out_of_memory = (await asyncio.shield(cell.ended)).out_of_memory
            except LauncherLost:
                out_of_memory = False
        return "out_of_memory" if out_of_memory else "unknown"

    def _lease_uid(self) -> int:
        return self._uids.lease() if self._uids is not None else os.getuid()

    def _release_uid(self, uid: int) -> None:
        if self._uids is not None:
            self._uids.release(uid)

    async def _root(self, kind: Kind, tools: Sequence[Path]) -> None:
        """Build the root of a kind once; those who come meanwhile wait for the same work."""
        task = self._roots.get(kind.root)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            plan = plan_root(kind.root, tools, resolvers=host_resolvers() if kind.online else None)
            task = asyncio.create_task(self._build_root(plan.as_dict()), name=f"sandbox.root.{kind.root}")
            self._roots[kind.root] = task
        await asyncio.shield(task)

    async def _build_root(self, plan: dict[str, Any]) -> None:
        await self._launcher.request("root", plan=plan)


def _told(config: AgentConfig) -> dict[str, Any]:
    """The launcher's words for it."""
    return {
        "instance": config.instance_id,
        "runtime": config.runtime,
        "worker": config.worker.as_dict(),
        "api_digest": config.api_digest,
    }


def _send_fds(line: int, fds: Sequence[int]) -> None:
    with socket.socket(fileno=os.dup(line)) as sock:
        socket.send_fds(sock, [b"fork"], fds)


async def _dead(pidfd: int) -> None:
    """Wait for the end of a process that nobody reports any more."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    watched = os.dup(pidfd)
    loop.add_reader(watched, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(watched)
        os.close(watched)


class Uids:
    """Host users for instances: none is used by two living instances, so nothing that counts per user is shared."""

    def __init__(self, first: int, count: int = 60_000) -> None:
        self._fresh = itertools.count(first)
        self._end = first + count
        self._free: list[int] = []

    def lease(self) -> int:
        if self._free:
            return self._free.pop()
        uid = next(self._fresh)
        if uid >= self._end:
            raise NovaError("capacity", "all user ids for instances are in use")
        return uid

    def release(self, uid: int) -> None:
        self._free.append(uid)
