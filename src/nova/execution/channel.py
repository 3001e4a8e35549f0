"""The host's end of one instance in direct mode: control by frames to the agent, calls straight to its workers."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import structlog

from nova.agent import frames
from nova.agent.config import AgentConfig
from nova.agent.environment import worker_init
from nova.agent.frames import Frame
from nova.agent.messages import (
    DoneHead,
    HelloHead,
    InitHead,
    KillWorkerHead,
    LoadedHead,
    ReloadHead,
    ThawHead,
    WorkerExitHead,
)
from nova.agent.worker import init_line
from nova.errors import FunctionError
from nova.execution import channel_reload
from nova.execution.backends.base import InitDone, InitFailed, InitSpec, WorkerCall, WorkerResult
from nova.execution.channel_control import ControlConnection, ControlLost
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_ends import DeathCause, Ends
from nova.execution.channel_heads import init_head, loaded_head, welcome_head
from nova.execution.channel_line import WorkerLine
from nova.execution.channel_reload import ReloadFailed
from nova.execution.channel_workers import RELAYED_EXIT_REPORT_S, Workers
from nova.execution.guest_desk import GuestDesk

log = structlog.get_logger(__name__)

T = TypeVar("T")

HELLO_TIMEOUT_S: Final = 10.0
KILL_S: Final = 1.0
"""How long the agent has to end one worker and all that it started."""


class FreezeRefused(Exception):
    """The agent cannot be kept in a snapshot of its machine, or cannot go on from it; the text says why."""


class DirectChannel:
    """One instance, from Hello to its end. Implements ``Channel`` of the backends.

    ``instance_id`` may be set until ``init``: a template gets its name when it is claimed.
    """

    def __init__(
        self,
        control: socket.socket,
        instance_id: str,
        *,
        kill: Callable[[], None],
        death_cause: Callable[[], Awaitable[DeathCause]],
        deadlines: Deadlines,
        init_timeout_s: float,
    ) -> None:
        self.instance_id = instance_id
        self._kill = kill
        self._ends = Ends(death_cause)
        self._workers = Workers(self, self._ends, deadlines)
        self._init_timeout_s = init_timeout_s
        self._control = ControlConnection(control, on_frame=self._on_frame, on_lost=self._workers.agent_lost)
        self.guests = GuestDesk(self._control, self._workers.find)
        self._workers.asked = self.guests.asked
        self._standing: tuple[int, int, int] | None = None
        self._agent: AgentConfig | None = None
        """of an agent that nobody else can reach"""
        self._api_token = ""
        """what that one's workers show to its guest API"""
        self._untold: InitHead | None = None
        """what was loaded and the agent does not know"""
        self._asked = 1
        self._begun = False
        """a function has been, or is being, loaded"""
        self._reloading = asyncio.Lock()
        self._stopping = False
        self._tasks: set[asyncio.Task[object]] = set()

    @classmethod
    async def connect(
        cls,
        control_sock: socket.socket,
        token: bytes,
        instance_id: str,
        *,
        kill: Callable[[], None],
        death_cause: Callable[[], Awaitable[DeathCause]],
        deadlines: Deadlines,
        init_timeout_s: float = 10.0,
    ) -> Self:
        """Greet the agent behind ``control_sock``; the channel owns the socket from here on.

        ``kill`` ends the instance at once and must not fail when it has ended; ``death_cause`` is asked after an end.
        Raises :class:`ControlLost`, or TimeoutError when there is no answer in 10 s.
        """
        channel = cls(
            control_sock,
            instance_id,
            kill=kill,
            death_cause=death_cause,
            deadlines=deadlines,
            init_timeout_s=init_timeout_s,
        )
        hello = HelloHead(token=token.hex(), instance_id=instance_id)
        await channel._greet(channel._control.request(frames.HELLO, hello.as_head()))
        return channel

    @classmethod
    async def hear(
        cls,
        control_sock: socket.socket,
        agent: AgentConfig,
        api_token: str,
        *,
        kill: Callable[[], None],
        death_cause: Callable[[], Awaitable[DeathCause]],
        deadlines: Deadlines,
        init_timeout_s: float = 10.0,
    ) -> Self:
        """As :meth:`connect`, where nobody else can reach the agent behind ``control_sock``: it speaks first
        (:mod:`nova.agent.quiet`). ``agent``: what it was told; of ``api_token`` it knows the digest."""
        channel = cls(
            control_sock,
            agent.instance_id,
            kill=kill,
            death_cause=death_cause,
            deadlines=deadlines,
            init_timeout_s=init_timeout_s,
        )
        channel._agent, channel._api_token = agent, api_token
        await channel._greet(channel._control.greeting())
        return channel

    async def _greet(self, greeting: asyncio.Future[Frame]) -> None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                self._welcomed(await greeting)
        except BaseException:
            self.close()
            raise

    def _welcomed(self, answer: Frame) -> None:
        welcome = welcome_head(answer)
        self._standing = self._control.take_fds(answer) if welcome.fds else None
        if "relayed" in welcome.features:
            self._workers.exit_report_s = RELAYED_EXIT_REPORT_S
        log.debug(
            "agent connected",
            instance_id=self.instance_id,
            agent=welcome.agent,
            runtimes=welcome.runtimes,
            boot_us=welcome.boot_us,
        )

    def standing_line(self) -> int:
        """A copy of the descriptor of the standing worker's line, before :meth:`init`; the caller closes it."""
        if self._standing is None:
            raise ControlLost("the agent has no standing worker")
        return os.dup(self._standing[0])

    # -- loading -------------------------------------------------------------------------------------------------

    async def init(self, spec: InitSpec) -> InitDone:
        """Load the function. Raises :class:`InitFailed`; the instance is then only good for being stopped."""
        self._ends.memory_mb = spec.memory_mb
        self._asked, self._begun = spec.concurrency, True
        head = init_head(spec, self.instance_id, self._api_token)
        try:
            async with asyncio.timeout(self._init_timeout_s):
                if self._agent is not None and self._agent.takes_init(spec.entry_kind):
                    return await self._load_directly(self._agent, head)
                answer, loaded = await self._load(frames.INIT, head)
        except TimeoutError:
            self._workers.give_up()
            text = f"loading the code took longer than {self._init_timeout_s:g} s"
            raise InitFailed(FunctionError("Nova.InitError", text)) from None
        except ControlLost as lost:
            error = await self._ends.cause(None, f"the instance ended while it loaded the code: {lost}")
            raise InitFailed(error) from None
        if loaded.error is not None or not loaded.ok:
            raise InitFailed(await self._ends.of_load(loaded), loaded.stdout, loaded.stderr)
        return self._serve_from(answer, loaded)

    async def _load_directly(self, agent: AgentConfig, head: InitHead) -> InitDone:
        """Past the agent, which hears of it when it has to know."""
        if head.runtime != agent.runtime:
            raise InitFailed(FunctionError("Nova.InitError", f"this instance runs {agent.runtime}, not {head.runtime}"))
        if self._standing is None or self._workers.lost:
            raise ControlLost("the agent is gone, or did not hand over its worker")
        descriptors, self._standing = self._standing, None
        line = self._drive(0, descriptors, multiplex=False)
        began = time.monotonic()
        loading = line.load(init_line(worker_init(agent, head, head.api_token)))
        self._untold = replace(head, loaded=True)
        loaded = await loading
        took_us = int((time.monotonic() - began) * 1e6)
        stdout, stderr = line.prints()
        if isinstance(loaded, FunctionError):
            raise InitFailed(loaded, stdout, stderr)
        slots = min(loaded.concurrency, self._asked) if loaded.multiplex else self._asked
        self._workers.replace(line, slots)
        return InitDone(took_us, slots, stdout, stderr, min(loaded.import_us, took_us))

    async def _load(self, kind: int, head: InitHead | None) -> tuple[Frame, LoadedHead]:
        answer = await self._control.request(kind, head.as_head() if head else {})
        return answer, loaded_head(answer)

    def _serve_from(self, answer: Frame, loaded: LoadedHead) -> InitDone:
        """From here on calls go to the worker that has just loaded, and to further ones like it."""
        slots = min(loaded.concurrency, self._asked) if loaded.multiplex else self._asked
        self._workers.replace(self._adopt(answer, loaded), slots)
        return InitDone(loaded.init_us, slots, loaded.stdout, loaded.stderr, min(loaded.import_us, loaded.init_us))

    def _adopt(self, answer: Frame, loaded: LoadedHead) -> WorkerLine:
        """Start to drive a worker that has loaded the code."""
        if loaded.fds:
            descriptors = self._control.take_fds(answer)
            self._close_standing()
        else:
            if self._standing is None:
                raise ControlLost("the agent did not hand over its worker")
            descriptors, self._standing = self._standing, None
        return self._drive(loaded.worker, descriptors, multiplex=loaded.multiplex)

    def _drive(self, number: int, descriptors: tuple[int, int, int], *, multiplex: bool) -> WorkerLine:
        line = WorkerLine(self._workers, number, descriptors, multiplex=multiplex, instance_id=self.instance_id)
        self._workers.lines[number] = line
        return line

    def _close_standing(self) -> None:
        if self._standing is not None:
            for fd in self._standing:
                os.close(fd)
            self._standing = None

    async def reload(
        self, tar: AsyncIterator[bytes] | Path, *, digest: str, size: int, handler: str, entry: str
    ) -> InitDone:
        """Replace the code by that of an uncompressed tar of ``size`` bytes with the digest ``sha256:…``.

        Calls in flight finish on the old worker, which then ends; later ones run the new code. Raises
        :class:`ReloadFailed`: then the old code serves as before.
        """
        begin = ReloadHead("begin", digest, size, handler, entry)
        async with self._reloading:
            try:
                await channel_reload.upload(self._control, tar, begin)
                # a caller that leaves now does not stop the switch half way
                return await asyncio.shield(self.spawn(self._switch(size)))
            except ControlLost as lost:
                raise ReloadFailed(FunctionError("Nova.InstanceLost", str(lost))) from None

    async def _switch(self, size: int) -> InitDone:
        limit_s = self._init_timeout_s + size / channel_reload.UNPACK_RATE
        answer = await channel_reload.commit(self._control, limit_s)
        loaded = loaded_head(answer)
        if loaded.error is not None or not loaded.ok:
            raise ReloadFailed(await self._ends.of_load(loaded), loaded.stdout, loaded.stderr)
        return self._serve_from(answer, loaded)

    # -- snapshots of a whole machine ----------------------------------------------------------------------------

    async def freeze(self) -> None:
        """Have the loaded instance wait for the snapshot of its machine. Raises :class:`FreezeRefused`, ControlLost, FrameError.

        In any case the channel is only good for being closed afterwards, and that has to be done before the snapshot.
        """
        self._stopping = True
        answer = DoneHead.of((await self._control.request(frames.FREEZE, {})).head)
        if not answer.ok:
            raise FreezeRefused(answer.error.message if answer.error else "no reason given")

    async def thaw(self, thaw: ThawHead) -> None:
        """The first request to an agent that comes from a snapshot, which the channel has greeted as what it was then.
        :meth:`init` of the same function follows. Raises :class:`FreezeRefused`, ControlLost, FrameError."""
        answer = DoneHead.of((await self._control.request(frames.THAW, thaw.as_head())).head)
        if not answer.ok:
            raise FreezeRefused(answer.error.message if answer.error else "no reason given")
        self.instance_id = thaw.instance_id

    # -- calls and pings -----------------------------------------------------------------------------------------

    def call(self, call: WorkerCall) -> Awaitable[WorkerResult]:
        """See ``Channel.call``."""
        return self._workers.call(call)

    async def ping(self, timeout_s: float) -> bool:
        """Whether the agent answers in time and says that it has workers."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await (self._control.ping() if self._agent else self._control.request(frames.PING, {}))
        except (ControlLost, TimeoutError):
            return False
        return answer.head.get("ok") is True and (not self._workers.lines or bool(answer.head.get("workers")))

    # -- what the workers need -----------------------------------------------------------------------------------

    async def add_worker(self) -> WorkerLine:
        """One more worker of the loaded function. Raises ControlLost or TimeoutError."""
        async with asyncio.timeout(self._init_timeout_s):
            untold, self._untold = self._untold, None
            if untold is not None:
                await self._load(frames.INIT, untold)
            answer, loaded = await self._load(frames.ADD_WORKER, None)
        if not loaded.ok:
            text = loaded.error.message if loaded.error else "no reason given"
            raise ControlLost(f"a further worker could not be started: {text}")
        return self._adopt(answer, loaded)

    async def end_worker(self, number: int) -> None:
        """End a worker with all that it started. Raises ControlLost or TimeoutError."""
        async with asyncio.timeout(KILL_S):
            await self._control.request(frames.KILL_WORKER, KillWorkerHead(number).as_head())

    def kill_instance(self) -> None:
        """End everything at once, unless the workers end because they were asked to: then the agent follows."""
        if not self._stopping:
            self._kill()

    def spawn(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run something in the background until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return not self._workers.lost

    def on_lost(self, callback: Callable[[], None]) -> None:
        self._workers.on_lost(callback)

    async def stop(self, grace_ms: int) -> None:
        """Ask the agent to end its workers in ``grace_ms`` and then itself. An agent that is gone already is no error."""
        self._stopping = True
        with contextlib.suppress(ControlLost, TimeoutError):
            async with asyncio.timeout(grace_ms / 1000 + 1):
                await self._control.request(frames.STOP, {"grace_ms": grace_ms})

    def close(self) -> None:
        """Free every descriptor; calls in flight end as ``Nova.InstanceLost``. Idempotent."""
        self._workers.lose(FunctionError("Nova.InstanceLost", "the instance was stopped"))
        self.guests.close()
        self._control.close()
        self._close_standing()
        self._workers.close()

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == frames.WORKER_EXIT:
            self._workers.exited(WorkerExitHead.of(frame.head))
            if self._agent is not None and self._agent.takes_init("handler") and not self._begun:
                self._workers.give_up()  # it was to load the function, and no other can be had from a quiet agent
        elif frame.type in frames.GUEST_QUESTIONS or frame.type == frames.CANCEL:
            self.guests.heard(frame)
