"""The host's end of one instance in direct mode: control by frames to the agent, calls straight to its workers."""

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Final, Self, TypeVar

import structlog

from nova.agent import frames
from nova.agent.frames import Frame
from nova.agent.messages import HelloHead, InitHead, KillWorkerHead, LoadedHead, ReloadHead, WorkerExitHead
from nova.agent.worker import call_line
from nova.errors import FunctionError
from nova.execution import channel_reload
from nova.execution.backends.base import InitDone, InitFailed, InitSpec, WorkerCall, WorkerResult
from nova.execution.channel_control import ControlConnection, ControlLost
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_ends import DeathCause, Ends
from nova.execution.channel_heads import init_head, loaded_head, welcome_head
from nova.execution.channel_line import Call, WorkerLine
from nova.execution.channel_reload import ReloadFailed

log = structlog.get_logger(__name__)

T = TypeVar("T")

HELLO_TIMEOUT_S: Final = 10.0
EXIT_REPORT_S: Final = 0.1
"""How long a closed line socket waits for the agent to say why."""
CANCEL_GRACE_S: Final = 1.0
"""How long a multiplexing worker has to confirm a cancelled call."""
KILL_S: Final = 1.0
"""How long the agent has to end one worker and all that it started."""


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
        self._deadlines = deadlines
        self._init_timeout_s = init_timeout_s
        self._loop = asyncio.get_running_loop()
        self._control = ControlConnection(control, on_frame=self._on_frame, on_lost=self._on_control_lost)
        self._standing: tuple[int, int, int] | None = None
        self._lines: dict[int, WorkerLine] = {}
        self._free: list[WorkerLine] = []
        self._waiting: deque[tuple[Call, bytes]] = deque()
        self._multiplex = False
        self._asked = 1
        self._slots = 0
        self._starting = 0
        self._dying = 0
        self._generation = 0
        self._reloading = asyncio.Lock()
        self._exits: dict[int, WorkerExitHead] = {}
        self._lost = False
        self._stopping = False
        self._lost_callbacks: list[Callable[[], None]] = []
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
        welcome = welcome_head(answer)
        self._standing = self._control.take_fds(answer) if welcome.fds else None
        log.debug(
            "agent connected",
            instance_id=self.instance_id,
            agent=welcome.agent,
            runtimes=welcome.runtimes,
            boot_us=welcome.boot_us,
        )

    # -- loading -------------------------------------------------------------------------------------------------

    async def init(self, spec: InitSpec) -> InitDone:
        """Load the function. Raises :class:`InitFailed`; the instance is then only good for being stopped."""
        self._ends.memory_mb = spec.memory_mb
        self._asked = spec.concurrency
        try:
            async with asyncio.timeout(self._init_timeout_s):
                answer, loaded = await self._load(frames.INIT, init_head(spec, self.instance_id))
        except TimeoutError:
            self._give_up()
            text = f"loading the code took longer than {self._init_timeout_s:g} s"
            raise InitFailed(FunctionError("Nova.InitError", text)) from None
        except ControlLost as lost:
            error = await self._ends.cause(None, f"the instance ended while it loaded the code: {lost}")
            raise InitFailed(error) from None
        if loaded.error is not None or not loaded.ok:
            raise InitFailed(await self._ends.of_load(loaded), loaded.stdout, loaded.stderr)
        return self._serve_from(answer, loaded)

    async def _load(self, kind: int, head: InitHead | None) -> tuple[Frame, LoadedHead]:
        answer = await self._control.request(kind, head.as_head() if head else {})
        return answer, loaded_head(answer)

    def _serve_from(self, answer: Frame, loaded: LoadedHead) -> InitDone:
        """From here on calls go to the worker that has just loaded, and to further ones like it."""
        self._multiplex = loaded.multiplex
        self._slots = min(loaded.concurrency, self._asked) if loaded.multiplex else self._asked
        line = self._adopt(answer, loaded)
        self._free = [line] if self._multiplex else []
        self.line_free(line)
        return InitDone(loaded.init_us, self._slots, loaded.stdout, loaded.stderr)

    def _adopt(self, answer: Frame, loaded: LoadedHead) -> WorkerLine:
        """Start to drive a worker that has loaded the code."""
        if loaded.fds:
            descriptors = self._control.take_fds(answer)
            self._close_standing()
        else:
            if self._standing is None:
                raise ControlLost("the agent did not hand over its worker")
            descriptors, self._standing = self._standing, None
        line = WorkerLine(self, loaded.worker, descriptors, multiplex=self._multiplex, instance_id=self.instance_id)
        self._lines[line.number] = line
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
                return await asyncio.shield(self._spawn(self._switch(size)))
            except ControlLost as lost:
                raise ReloadFailed(FunctionError("Nova.InstanceLost", str(lost))) from None

    async def _switch(self, size: int) -> InitDone:
        limit_s = self._init_timeout_s + size / channel_reload.UNPACK_RATE
        answer = await channel_reload.commit(self._control, limit_s)
        loaded = loaded_head(answer)
        if loaded.error is not None or not loaded.ok:
            raise ReloadFailed(await self._ends.of_load(loaded), loaded.stdout, loaded.stderr)
        old = list(self._lines.values())
        self._generation += 1
        done = self._serve_from(answer, loaded)
        for line in old:
            self._retire(line)
        return done

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(self, call: WorkerCall) -> Awaitable[WorkerResult]:
        """See ``Channel.call``."""
        flying = Call(self, self._deadlines, call.request_id, call.deadline, call.context)
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
            self._grow()
        return flying

    def _grow(self) -> None:
        """One more worker if a call waits for one and there may be more."""
        current = sum(not line.retiring for line in self._lines.values())
        if self._waiting and not self._lost and current + self._starting + self._dying < self._slots:
            self._starting += 1
            self._spawn(self._start_worker())

    async def _start_worker(self) -> None:
        generation = self._generation
        try:
            async with asyncio.timeout(self._init_timeout_s):
                answer, loaded = await self._load(frames.ADD_WORKER, None)
            if not loaded.ok:
                text = loaded.error.message if loaded.error else "no reason given"
                raise ControlLost(f"a further worker could not be started: {text}")
            line = self._adopt(answer, loaded)
        except (ControlLost, TimeoutError) as error:
            self._lose(FunctionError("Nova.WorkerLost", str(error)))
            return
        finally:
            self._starting -= 1
        if generation == self._generation:
            self.line_free(line)
        else:  # the code was replaced meanwhile, and this worker may have the old one
            self._retire(line)
            self._grow()

    def line_free(self, line: WorkerLine) -> None:
        if line.retiring:
            self._retire(line)
            return
        if self._lost:
            return
        while self._waiting:
            call, data = self._waiting.popleft()
            if not call.done():
                line.send(call, data)
                if not line.multiplex:
                    return
        if not line.multiplex:
            self._free.append(line)

    def _retire(self, line: WorkerLine) -> None:
        """It gets no further call, and ends when the ones it has are done."""
        line.retiring = True
        if not self._lost and not line.in_flight():
            self._dismiss(line)

    def _dismiss(self, line: WorkerLine) -> None:
        """End one worker; the instance goes on."""
        for call in line.in_flight():
            line.finish(call, None, FunctionError("Nova.WorkerLost", "the worker was ended because of another call"))
        line.close()
        del self._lines[line.number]
        if line in self._free:
            self._free.remove(line)
        self._dying += not line.retiring
        self._spawn(self._end_worker(line))

    async def _end_worker(self, line: WorkerLine) -> None:
        try:
            async with asyncio.timeout(KILL_S):
                await self._control.request(frames.KILL_WORKER, KillWorkerHead(line.number).as_head())
        except (ControlLost, TimeoutError):
            self._give_up()
        self._dying -= not line.retiring
        self._grow()

    def call_overdue(self, call: Call, error: FunctionError | None) -> None:
        """Time is up, or the caller has gone. A worker that has one call at a time dies, others are asked first."""
        line = call.line
        if line is None:  # still waiting for a worker
            call.settle(None, error)
            return
        if self._lost or not line.has(call):
            return
        if not line.multiplex:
            line.finish(call, None, error)
            self._end_alone(line)
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
            self._end_alone(line)

    def _end_alone(self, line: WorkerLine) -> None:
        """End a worker, and with it the instance if that is all there is to it."""
        if line.retiring or (self._slots > 1 and not line.multiplex):
            self._dismiss(line)
        else:
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

    def line_ending(self, line: WorkerLine) -> None:
        """A worker that will not live: no call may reach it in its last moments."""
        if not self._lost:
            self._end_alone(line)

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
        if not self._lost and line.number not in self._exits and line.number in self._lines:
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
        error = await self._ends.cause(report, reason)
        if self._lost:
            return
        if line is None:
            self._lose(error)
        elif line.number in self._lines:
            for call in line.in_flight():
                line.finish(call, None, error)
            if line.retiring:
                self._dismiss(line)
            else:
                self._give_up()

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

    def _spawn(self, work: Coroutine[None, None, T]) -> "asyncio.Task[T]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
