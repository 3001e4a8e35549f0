"""The workers of one instance as the host drives them: who has which call, who comes and who goes."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import structlog

from nova.agent.messages import WorkerExitHead
from nova.agent.worker import call_line
from nova.errors import FunctionError, NovaError
from nova.execution.backends.base import WorkerCall, WorkerResult
from nova.execution.channel_call import Call
from nova.execution.channel_control import ControlLost
from nova.execution.channel_deadlines import Deadlines
from nova.execution.channel_ends import Ends
from nova.execution.channel_line import WorkerLine
from nova.execution.channel_stream import Stream

log = structlog.get_logger(__name__)

EXIT_REPORT_S: Final = 2.0
"""How long a closed line socket waits for the agent to say why. It does within milliseconds, unless the machine is busy or
the worker leaves its line and lives on."""
RELAYED_EXIT_REPORT_S: Final = 3.0
"""The same where the agent is on a machine of its own, which may be slow to bury a process."""
CANCEL_GRACE_S: Final = 1.0
"""How long a multiplexing worker has to confirm a cancelled call."""


class Agent(Protocol):
    """What is asked of the instance's agent, and of whoever can end the instance."""

    instance_id: str

    async def add_worker(self) -> WorkerLine:
        """One more worker of the loaded function. Raises ControlLost or TimeoutError."""
        ...

    async def end_worker(self, number: int) -> None:
        """End a worker with all that it started. Raises ControlLost or TimeoutError."""
        ...

    def kill_instance(self) -> None:
        """End everything at once."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        """Run something in the background until it ends."""
        ...


class Workers:
    """The calls of one instance on their way to its workers; implements ``LineOwner``.

    With a multiplexing worker there is one at a time, otherwise one for each call in flight, at most ``slots``.
    """

    def __init__(self, agent: Agent, ends: Ends, deadlines: Deadlines) -> None:
        self.lost = False
        """no call goes here any more"""
        self.lines: dict[int, WorkerLine] = {}
        self.exit_report_s = EXIT_REPORT_S
        self.asked: Callable[[bytes, Callable[[int, int, bytes], None]], None] | None = None
        """gets the questions that workers put on their lines, each with what answers it: number, status, body"""
        self._agent = agent
        self._ends = ends
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._free: list[WorkerLine] = []
        self._waiting: deque[tuple[Call, bytes]] = deque()
        self._multiplex = False
        self._slots = 0
        self._starting = 0
        self._dying = 0
        self._generation = 0
        self._exits: dict[int, WorkerExitHead] = {}
        self._lost_callbacks: list[Callable[[], None]] = []

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(self, call: WorkerCall) -> Awaitable[WorkerResult]:
        """See ``Channel.call``."""
        flying = Call(self, self._deadlines, call.request_id, call.deadline, call.context)
        if call.sink is not None:
            flying.pieces = Stream(flying, call.sink, limit=call.stream_limit, idle_s=call.idle_s)
        if self.lost:
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

    def find(self, request_id: str) -> Call | None:
        """The call of this id, while it is in a worker."""
        for line in self.lines.values():
            for call in line.in_flight():
                if call.request_id == request_id and not call.done():
                    return call
        return None

    def call_overdue(self, call: Call, error: FunctionError | None) -> None:
        """Time is up, or the caller has gone. A worker that has one call at a time dies, others are asked first."""
        line = call.line
        if line is None:  # still waiting for a worker
            call.settle(None, error)
            return
        if self.lost or not line.has(call):
            return
        if not line.multiplex:
            line.finish(call, None, error)
            self._end_alone(line)
            return
        if call.pieces is not None and call.pieces.answer is not None:  # its worker has done with it already
            line.finish(call, None, error)
            return
        grace = CANCEL_GRACE_S
        if error is not None:
            line.expire(call, error)
        else:  # a caller that left costs nobody: the worker has until the call's own deadline
            grace = max(grace, call.deadline - time.monotonic())
        line.tell_cancelled(call)
        self._loop.call_later(grace, self._check_cancelled, line, call)

    def _check_cancelled(self, line: WorkerLine, call: Call) -> None:
        if not self.lost and line.has(call):
            self._end_alone(line)

    # -- workers come --------------------------------------------------------------------------------------------

    def replace(self, line: WorkerLine, slots: int) -> None:
        """Serve from a worker that has just loaded, and further ones like it; those of before end after their calls."""
        old = [other for other in self.lines.values() if other is not line]
        self._generation += 1
        self._multiplex = line.multiplex
        self._slots = slots
        self._free = [line] if line.multiplex else []
        self.line_free(line)
        for other in old:
            self._retire(other)

    def _grow(self) -> None:
        """One more worker if a call waits for one and there may be more."""
        current = sum(not line.retiring for line in self.lines.values())
        if self._waiting and not self.lost and current + self._starting + self._dying < self._slots:
            self._starting += 1
            self._agent.spawn(self._start_worker())

    async def _start_worker(self) -> None:
        generation = self._generation
        try:
            line = await self._agent.add_worker()
        except (ControlLost, TimeoutError) as error:
            self.lose(FunctionError("Nova.WorkerLost", str(error)))
            return
        finally:
            self._starting -= 1
        if generation == self._generation:
            self.line_free(line)
        else:  # the code was replaced meanwhile, and this worker may have the old one
            self._retire(line)
            self._grow()

    def line_free(self, line: WorkerLine) -> None:
        """It can take another call."""
        if line.retiring:
            self._retire(line)
            return
        if self.lost:
            return
        while self._waiting:
            call, data = self._waiting.popleft()
            if not call.done():
                line.send(call, data)
                if not line.multiplex:
                    return
        if not line.multiplex:
            self._free.append(line)

    # -- workers go ----------------------------------------------------------------------------------------------

    def _retire(self, line: WorkerLine) -> None:
        """It gets no further call, and ends when the ones it has are done."""
        line.retiring = True
        if not self.lost and not line.in_flight():
            self._dismiss(line)

    def _dismiss(self, line: WorkerLine) -> None:
        """End one worker; the instance goes on."""
        for call in line.in_flight():
            line.finish(call, None, FunctionError("Nova.WorkerLost", "the worker was ended because of another call"))
        line.close()
        del self.lines[line.number]
        if line in self._free:
            self._free.remove(line)
        self._dying += not line.retiring
        self._agent.spawn(self._end_worker(line))

    async def _end_worker(self, line: WorkerLine) -> None:
        try:
            await self._agent.end_worker(line.number)
        except (ControlLost, TimeoutError):
            self.give_up()
        self._dying -= not line.retiring
        self._grow()

    def _end_alone(self, line: WorkerLine) -> None:
        """End a worker, and with it the instance if that is all there is to it."""
        if line.retiring or (self._slots > 1 and not line.multiplex):
            self._dismiss(line)
        else:
            self.give_up()

    def line_asks(self, line: WorkerLine, document: bytes) -> None:
        """The worker asks something."""
        if self.asked is None or self.lost:
            return
        try:
            self.asked(document, line.tell)
        except NovaError as wrong:
            self.line_broken(line, wrong.detail)

    def line_broken(self, line: WorkerLine, reason: str) -> None:
        """A worker that breaks the protocol costs its instance, and its own calls are told what it did."""
        if self.lost:
            return
        for call in line.in_flight():
            line.finish(call, None, FunctionError("Nova.InvalidOutput", reason))
        log.warning("worker broke the protocol", instance_id=self._agent.instance_id, reason=reason)
        self.give_up()

    def line_ending(self, line: WorkerLine) -> None:
        """A worker that will not live: no call may reach it in its last moments."""
        if not self.lost:
            self._end_alone(line)

    def line_ended(self, line: WorkerLine) -> None:
        """Its worker is dead or dying: wait a moment for the agent to say how."""
        if self.lost:
            return
        report = self._exits.get(line.number)
        if report is not None:
            self._agent.spawn(self.conclude(line, report))
        else:
            self._loop.call_later(self.exit_report_s, self._no_report, line)

    def _no_report(self, line: WorkerLine) -> None:
        if not self.lost and line.number not in self._exits and line.number in self.lines:
            self._agent.spawn(self.conclude(line, None))

    def exited(self, report: WorkerExitHead) -> None:
        """The agent says that a worker has ended."""
        log.debug("worker ended", instance_id=self._agent.instance_id, pid=report.pid, code=report.exit_code)
        self._exits[report.worker] = report
        line = self.lines.get(report.worker)
        if line is not None and not self.lost:
            line.read_rest()  # an answer written just before the end still counts
            if line.paused:  # so do the pieces before it: the end of the line comes when they are taken
                return
            self._agent.spawn(self.conclude(line, report))

    def agent_lost(self, reason: str) -> None:
        """The connection to the agent has ended."""
        for line in list(self.lines.values()):
            line.read_rest()
        if not self.lost:
            self._agent.spawn(self.conclude(None, None, reason))

    async def conclude(
        self, line: WorkerLine | None, report: WorkerExitHead | None, reason: str = "the instance ended"
    ) -> None:
        """A worker or the agent is dead: name the cause to the calls that had it, and end the instance."""
        error = await self._ends.cause(report, reason)
        if self.lost:
            return
        if line is None:
            self.lose(error)
        elif line.number in self.lines:
            line.fail_load(error)
            for call in line.in_flight():
                line.finish(call, None, error)
            if line.retiring:
                self._dismiss(line)
            else:
                self.give_up()

    # -- the end -------------------------------------------------------------------------------------------------

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Called once, when no further call can come here."""
        if self.lost:
            self._loop.call_soon(callback)
        else:
            self._lost_callbacks.append(callback)

    def give_up(self) -> None:
        """End the instance because of one call or worker; what else it was doing is lost."""
        self._agent.kill_instance()
        self.lose(FunctionError("Nova.WorkerLost", "the instance was ended because of another call"))

    def lose(self, error: FunctionError) -> None:
        """No call goes here any more, and those in flight end now. Told once."""
        if self.lost:
            return
        self.lost = True
        for line in self.lines.values():
            line.fail_load(error)
            for call in line.in_flight():
                line.finish(call, None, error)
        while self._waiting:
            call, _ = self._waiting.popleft()
            call.settle(None, error)
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback()

    def close(self) -> None:
        """Free every descriptor; the calls in flight were ended before."""
        for line in self.lines.values():
            line.close()
        self.lines.clear()
