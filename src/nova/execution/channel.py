"""The host's end of one instance in direct mode: control by frames to the agent, calls straight to its workers."""

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final, Literal, Self

import structlog

from nova.agent import frames
from nova.agent.frames import Frame, FrameError
from nova.agent.messages import FunctionRef, HelloHead, InitHead, LoadedHead, WelcomeHead, WorkerExitHead, end_error
from nova.agent.worker import call_line
from nova.errors import FunctionError
from nova.execution.backends.base import InitDone, InitFailed, InitSpec, WorkerCall, WorkerResult
from nova.execution.channel_control import ControlConnection, ControlLost
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_line import Call, WorkerLine

log = structlog.get_logger(__name__)

DeathCause = Literal["out_of_memory", "unknown"]

HELLO_TIMEOUT_S: Final = 10.0
EXIT_REPORT_S: Final = 0.1
"""How long a closed line socket waits for the agent to say why."""
CANCEL_GRACE_S: Final = 1.0
"""How long a multiplexing worker has to confirm a cancelled call."""


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
        self._death_cause = death_cause
        self._deadlines = deadlines
        self._init_timeout_s = init_timeout_s
        self._loop = asyncio.get_running_loop()
        self._control = ControlConnection(control, on_frame=self._on_frame, on_lost=self._on_control_lost)
        self._standing: tuple[int, int, int] | None = None
        self._lines: dict[int, WorkerLine] = {}
        self._free: list[WorkerLine] = []
        self._waiting: deque[tuple[Call, bytes]] = deque()
        self._multiplex = False
        self._slots = 0
        self._starting = 0
        self._exits: dict[int, WorkerExitHead] = {}
        self._lost = False
        self._stopping = False
        self._lost_callbacks: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._memory_mb = 0

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
        try:
            await channel._greet(token)
        except BaseException:
            channel.close()
            raise
        return channel

    async def _greet(self, token: bytes) -> None:
        hello = HelloHead(token=token.hex(), instance_id=self.instance_id)
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            answer = await self._control.request(frames.HELLO, hello.as_head())
        try:
            welcome = WelcomeHead.of(answer.head)
        except FrameError as error:
            raise ControlLost(f"the agent's Hello is not valid: {error}") from None
        if welcome.proto != frames.PROTOCOL or "direct" not in welcome.features or welcome.state != "blank":
            raise ControlLost("the agent speaks another protocol")
        if welcome.max_message != frames.MAX_MESSAGE or welcome.fds not in (0, 3):
            raise ControlLost("the agent's limits do not fit")
        self._standing = self._take_descriptors() if welcome.fds else None
        log.debug(
            "agent connected",
            instance_id=self.instance_id,
            agent=welcome.agent,
            runtimes=welcome.runtimes,
            boot_us=welcome.boot_us,
        )

    def _take_descriptors(self) -> tuple[int, int, int]:
        line, stdout, stderr = self._control.take_fds(3)
        return line, stdout, stderr

    # -- loading -------------------------------------------------------------------------------------------------

    async def init(self, spec: InitSpec) -> InitDone:
        """Load the function. Raises :class:`InitFailed`; the instance is then only good for being stopped."""
        self._memory_mb = spec.memory_mb
        try:
            async with asyncio.timeout(self._init_timeout_s):
                loaded = await self._load(frames.INIT, _init_head(spec, self.instance_id))
        except TimeoutError:
            self._give_up()
            text = f"loading the code took longer than {self._init_timeout_s:g} s"
            raise InitFailed(FunctionError("Nova.InitError", text)) from None
        except ControlLost as lost:
            error = await self._cause(None, f"the instance ended while it loaded the code: {lost}")
            raise InitFailed(error) from None
        if loaded.error is not None or not loaded.ok:
            raise InitFailed(await self._init_error(loaded), loaded.stdout, loaded.stderr)
        self._multiplex = loaded.multiplex
        self._slots = min(loaded.concurrency, spec.concurrency) if loaded.multiplex else spec.concurrency
        self._adopt(loaded)
        return InitDone(loaded.init_us, self._slots, loaded.stdout, loaded.stderr)

    async def _load(self, kind: int, head: InitHead | None) -> LoadedHead:
        answer = await self._control.request(kind, head.as_head() if head else {})
        try:
            return LoadedHead.of(answer.head)
        except FrameError as error:
            raise ControlLost(f"the agent's answer is not valid: {error}") from None

    async def _init_error(self, loaded: LoadedHead) -> FunctionError:
        guest = loaded.error
        if guest is None or (guest.type == "Nova.Signal" and await self._death_cause() == "out_of_memory"):
            return self._out_of_memory()
        return FunctionError(guest.type, guest.message, guest.stack)

    def _adopt(self, loaded: LoadedHead) -> WorkerLine:
        """Start to drive a worker that has loaded the code."""
        if loaded.fds:
            descriptors = self._take_descriptors()
            self._close_standing()
        else:
            if self._standing is None:
                raise ControlLost("the agent did not hand over its worker")
            descriptors, self._standing = self._standing, None
        line = WorkerLine(self, loaded.worker, descriptors, multiplex=self._multiplex, instance_id=self.instance_id)
        self._lines[line.number] = line
        self._free.append(line)
        return line

    def _close_standing(self) -> None:
        if self._standing is not None:
            for fd in self._standing:
                os.close(fd)
            self._standing = None

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(self, call: WorkerCall) -> Awaitable[WorkerResult]:
        """See ``Channel.call``."""
        flying = Call(self, self._deadlines, call.request_id, call.deadline)
        if self._lost:
            flying.settle(None, FunctionError("Nova.InstanceLost", "the instance has ended"))
            return flying
        data = call_line(call.payload, call.context)
        if self._multiplex:
            self._free[0].send(flying, data)
        elif self._free:
            self._free.pop().send(flying, data)
        else:
            self._waiting.append((flying, data))
            if len(self._lines) + self._starting < self._slots:
                self._starting += 1
                self._spawn(self._start_worker())
        return flying

    async def _start_worker(self) -> None:
        """One more worker for a call that found none free."""
        try:
            async with asyncio.timeout(self._init_timeout_s):
                loaded = await self._load(frames.ADD_WORKER, None)
            if not loaded.ok:
                text = loaded.error.message if loaded.error else "no reason given"
                raise ControlLost(f"a further worker could not be started: {text}")
            self._starting -= 1
            line = self._adopt(loaded)
        except (ControlLost, TimeoutError) as error:
            self._starting -= 1
            self._lose(FunctionError("Nova.WorkerLost", str(error)))
            return
        self._free.remove(line)
        self.line_free(line)

    def line_free(self, line: WorkerLine) -> None:
        if self._multiplex or self._lost:
            return
        while self._waiting:
            call, data = self._waiting.popleft()
            if not call.done():
                line.send(call, data)
                return
        self._free.append(line)

    def call_overdue(self, call: Call, error: FunctionError | None) -> None:
        """Time is up, or the caller has gone. A worker with one call dies with its instance; others are asked first."""
        line = call.line
        if line is None:  # still waiting for a worker
            call.settle(None, error)
            return
        if self._lost or not line.has(call):
            return
        if not self._multiplex:
            line.finish(call, None, error)
            self._give_up()
            return
        grace = CANCEL_GRACE_S
        if error is not None:
            line.expire(call, error)
        else:  # a caller that left costs nobody: the worker has until the call's own deadline
            grace = max(grace, call.deadline - time.monotonic())
        line.tell_cancelled(call)
        self._loop.call_later(grace, self._check_cancelled, line, call)

    def _check_cancelled(self, line: WorkerLine, call: Call) -> None:
        if not self._lost and line.has(call):
            self._give_up()

    async def ping(self, timeout_s: float) -> bool:
        """Whether the agent answers in time and says that it has workers."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._control.request(frames.PING, {})
        except (ControlLost, TimeoutError):
            return False
        return answer.head.get("ok") is True and (not self._lines or bool(answer.head.get("workers")))

    async def stop(self, grace_ms: int) -> None:
        """Ask the agent to end its workers in ``grace_ms`` and then itself. An agent that is gone already is no error."""
        self._stopping = True
        with contextlib.suppress(ControlLost, TimeoutError):
            async with asyncio.timeout(grace_ms / 1000 + 1):
                await self._control.request(frames.STOP, {"grace_ms": grace_ms})

    # -- the end -------------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        return not self._lost

    def on_lost(self, callback: Callable[[], None]) -> None:
        if self._lost:
            self._loop.call_soon(callback)
        else:
            self._lost_callbacks.append(callback)

    def close(self) -> None:
        """Free every descriptor; calls in flight end as ``Nova.InstanceLost``. Idempotent."""
        self._lose(FunctionError("Nova.InstanceLost", "the instance was stopped"))
        self._control.close()
        self._close_standing()
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def line_broken(self, line: WorkerLine, reason: str) -> None:
        """A worker that breaks the protocol costs its instance, and its own calls are told what it did."""
        if self._lost:
            return
        for call in line.in_flight():
            line.finish(call, None, FunctionError("Nova.InvalidOutput", reason))
        log.warning("worker broke the protocol", instance_id=self.instance_id, reason=reason)
        self._give_up()

    def line_ended(self, line: WorkerLine) -> None:
        """Its worker is dead or dying: wait a moment for the agent to say how."""
        if self._lost:
            return
        report = self._exits.get(line.number)
        if report is not None:
            self._spawn(self._conclude(line, report))
        else:
            self._loop.call_later(EXIT_REPORT_S, self._no_report, line)

    def _no_report(self, line: WorkerLine) -> None:
        if not self._lost and line.number not in self._exits:
            self._spawn(self._conclude(line, None))

    def _on_frame(self, frame: Frame) -> None:
        if frame.type != frames.WORKER_EXIT:
            return
        report = WorkerExitHead.of(frame.head)
        log.debug("worker ended", instance_id=self.instance_id, pid=report.pid, code=report.exit_code)
        self._exits[report.worker] = report
        line = self._lines.get(report.worker)
        if line is not None and not self._lost:
            line.read_rest()  # an answer written just before the end still counts
            self._spawn(self._conclude(line, report))

    def _on_control_lost(self, reason: str) -> None:
        for line in list(self._lines.values()):
            line.read_rest()
        if not self._lost:
            self._spawn(self._conclude(None, None, reason))

    async def _conclude(
        self, line: WorkerLine | None, report: WorkerExitHead | None, reason: str = "the instance ended"
    ) -> None:
        """A worker or the agent is dead: name the cause to the calls that had it, and end the instance."""
        error = await self._cause(report, reason)
        if self._lost:
            return
        if line is not None:
            for call in line.in_flight():
                line.finish(call, None, error)
            self._give_up()
        else:
            self._lose(error)

    async def _cause(self, report: WorkerExitHead | None, reason: str) -> FunctionError:
        if await self._death_cause() == "out_of_memory":
            return self._out_of_memory()
        if report is None:
            return FunctionError("Nova.InstanceLost", reason)
        ended = end_error(report.exit_code, report.signal)
        return FunctionError(ended.type, ended.message)

    def _out_of_memory(self) -> FunctionError:
        return FunctionError("Nova.OutOfMemory", f"the function used more than its {self._memory_mb} MB of memory")

    def _give_up(self) -> None:
        """End the instance because of one call or worker; what else it was doing is lost."""
        if not self._stopping:  # then its workers end because they were asked to, and the agent follows
            self._kill()
        self._lose(FunctionError("Nova.WorkerLost", "the instance was ended because of another call"))

    def _lose(self, error: FunctionError) -> None:
        """No call goes here any more, and those in flight end now. Told once."""
        if self._lost:
            return
        self._lost = True
        for line in self._lines.values():
            for call in line.in_flight():
                line.finish(call, None, error)
        while self._waiting:
            call, _ = self._waiting.popleft()
            call.settle(None, error)
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _init_head(spec: InitSpec, instance_id: str) -> InitHead:
    return InitHead(
        function=FunctionRef(spec.function_id, spec.name, spec.version, spec.tenant, spec.namespace),
        instance_id=instance_id,
        runtime=spec.runtime,
        mode=spec.mode,
        handler=spec.handler,
        entry=spec.entry,
        entry_kind=spec.entry_kind,
        env=spec.env,
        memory_mb=spec.memory_mb,
        timeout_s=spec.timeout_s,
        concurrency=spec.concurrency,
        open_files=spec.open_files,
    )
