"""One call from acceptance to its record: find the snapshot, take a slot, send the input once, give the slot back once.

A call that was sent is never sent again. One whose instance died before anything was sent takes another.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import TAKEN_OVER, CallRequest, CallResult, Phases, check_chain
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.domain.ports import InstanceInfo
from nova.domain.stream import Sink
from nova.errors import NovaError, draining, not_found
from nova.execution.backends.base import WorkerCall, WorkerResult
from nova.execution.catalog import Catalog
from nova.execution.fleet import InstanceFleet
from nova.execution.flight import Done, Flight, gone, refusal_of
from nova.execution.slots import BootTimes, Lease, LoadFailed, PoolMoved
from nova.execution.streams import Counted
from nova.logcontext import CALL
from nova.standstill import Standstill, stood_still

Recorder = Callable[[CallRequest, FunctionSnapshot, CallResult], None]
"""Takes every finished call that reached an instance or failed to load; must not block or raise."""
Refused = Callable[[Scope, str, str], None]
"""Takes scope, function and problem code of every call that was turned away before it reached an instance."""
Durable = Callable[[CallRequest, FunctionSnapshot, float | None], Awaitable[CallResult]]
"""Takes a call of a durable function, and when its caller's time is up (monotonic)."""

ENDED_S = 2.0
"""How long a closing executor waits for the calls whose instances it has just destroyed."""

_INTENDED = {"Nova.Timeout": "timeout", "Nova.Cancelled": "cancelled"}
"""Why an instance is destroyed after these errors; after any other it crashed."""


class Executor:
    """Implements the ports :class:`~nova.domain.ports.Invoker`, :class:`~nova.domain.ports.Streamer` and
    :class:`~nova.domain.ports.Fleet`. ``stream_limit`` tells how many bytes all pieces of a stream may have."""

    def __init__(
        self,
        catalog: Catalog,
        fleet: InstanceFleet,
        recorder: Recorder,
        *,
        refused: Refused = lambda _scope, _function, _code: None,
        drain_s: float = 10.0,
        stream_limit: Callable[[], int] = lambda: 1 << 30,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self.record = recorder
        self.refused = refused
        self._drain_s = drain_s
        self._stream_limit = stream_limit
        self._clock = clock
        self.now = clock.monotonic
        self._standstill = Standstill(clock)
        self._ended = asyncio.Event()
        self.durable: Durable | None = None
        """what begins an execution of a durable function, and waits for its end where the caller does"""
        self.active = 0
        """calls that were accepted and have not been answered"""
        self._ending = False
        self.draining = False
        """no new calls: the server is shutting down"""

    async def start(self) -> None:
        await self._standstill.start()
        await self._catalog.start()
        await self._fleet.start()

    async def close(self) -> None:
        """Refuse new calls, wait ``drain_s`` for those in flight, end the rest and stop every instance. Idempotent."""
        self.drain()
        await self._all_ended(self._drain_s)
        await self._catalog.close()
        await self._fleet.close()
        await self._all_ended(ENDED_S)
        await self._standstill.close()

    def set_aside(self, aside: bool) -> None:
        """Refuse new calls for as long as an operator drains this node; those in flight finish."""
        self.draining = aside or self._ending

    def drain(self) -> None:
        """Refuse new calls from now on."""
        self._ending = self.draining = True

    async def _all_ended(self, limit_s: float) -> None:
        if self.active:
            self._ended.clear()
            try:
                async with asyncio.timeout(limit_s):
                    await self._ended.wait()
            except TimeoutError:
                return

    # Invoker

    async def invoke(self, call: CallRequest) -> CallResult:
        """Run one call to its end; see :class:`~nova.domain.ports.Invoker`.

        Raises NovaError: ``draining``, ``not_found``, ``recursion``, ``build_pending``, ``build_failed``, ``queue_full``,
        ``queue_timeout``, ``capacity``, ``timeout``, ``cancelled``, ``instance_lost``, or why no instance can be made.
        """
        return await self._call(call, None)

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """Run one call to its end while its pieces go to ``sink``; see :class:`~nova.domain.ports.Streamer`.

        Raises as :meth:`invoke`; ``timeout`` also when it was silent for the function's ``stream_idle_s``. More bytes than
        ``limits.stream_mb`` end it with the error ``Nova.OutputTooLarge``.
        """
        return await self._call(call, sink)

    async def _call(self, call: CallRequest, sink: Sink | None) -> CallResult:
        if self.draining and call.trigger != "function":  # what a call in flight calls is a part of it
            raise draining()
        if call.chain:
            check_chain(call)
        self.active += 1
        logged = CALL.set(call)
        try:
            began = self.now()
            deadline = _deadline(call)
            try:
                snapshot = self._catalog.peek(call)
                if snapshot is None:
                    snapshot = await self._catalog.resolve(call, deadline)
                if call.trigger == "url" and not snapshot.function_url:
                    raise not_found("the URL of function", call.function)
                if snapshot.mode == "durable" and call.trigger != "durable":
                    return await self._durable(call, snapshot, deadline, sink)
                lease = self._fleet.pool(snapshot).take()
                if lease is None or not lease.member.instance.channel.usable:
                    snapshot, lease = await self._acquire(call, snapshot, lease, deadline)
                sent = self.now()
                if deadline is not None and deadline <= sent:
                    lease.abandon(sent)
                    raise NovaError("timeout", "the caller's time was up before the call began")
                if self.doubts(call):
                    lease.abandon(sent)
                    raise stood_still()
            except NovaError as refusal:
                self.refused(call.scope, call.function, refusal.code)
                raise
            except LoadFailed as failure:
                return self.not_loaded(call, failure, began)
            if sink is not None:
                return await self._stream(call, snapshot, lease, deadline, began, sent, sink)
            return await self._run(call, snapshot, lease, deadline, began, sent)
        finally:
            CALL.reset(logged)
            self.leave()

    def begin(self, call: CallRequest, done: Done) -> Flight | None:
        """Start a call of a known function without a task: its end comes to ``done``.

        None, and nothing has happened, when the function has to be looked up or the call to be refused:
        :meth:`invoke` does that.
        """
        began = self.now()
        snapshot = self._catalog.peek(call)
        if self.draining or snapshot is None or call.trigger == "url" or call.chain or snapshot.mode == "durable":
            return None
        pool = self._fleet.pool(snapshot)
        flight = Flight(self, call, snapshot, began, _deadline(call), done)
        lease = pool.take()
        if lease is not None:
            flight.board(lease)
        else:
            try:
                flight.queue(pool, self._fleet.queue(pool, flight.deadline))
            except (NovaError, LoadFailed, PoolMoved):
                return None
        self.active += 1  # what the steps above find wrong, they tell later
        return flight

    def doubts(self, call: CallRequest) -> bool:
        """Whether the call may be done by somebody else by now, because this process stood still."""
        return call.trigger in TAKEN_OVER and self._standstill.doubts(call.received)

    def leave(self) -> None:
        """One call less."""
        self.active -= 1
        if not self.active:
            self._ended.set()

    async def _durable(
        self, call: CallRequest, snapshot: FunctionSnapshot, deadline: float | None, sink: Sink | None
    ) -> CallResult:
        """A call of a durable function is an execution, whose runs are calls of their own."""
        if self.durable is None:
            raise NovaError("unsupported", "durable functions cannot be called here")
        if sink is not None:
            raise NovaError("unsupported", "the answer of a durable function cannot be streamed")
        if call.trigger == "shadow":
            raise NovaError("unsupported", "calls of durable functions are not copied")
        result = await self.durable(call, snapshot, deadline)
        self.record(call, snapshot, result)
        return result

    async def _acquire(
        self, call: CallRequest, snapshot: FunctionSnapshot, broken: Lease | None, deadline: float | None
    ) -> tuple[FunctionSnapshot, Lease]:
        """Wait for a usable instance of the version that the call is for, which may change meanwhile."""
        lease = broken
        while True:
            if lease is not None:
                if lease.member.instance.channel.usable:
                    return snapshot, lease
                lease.retire(self.now(), "lost")
            pool = self._fleet.pool(snapshot)
            try:
                lease = pool.take() or await self._fleet.wait(pool, deadline)
            except PoolMoved:
                lease = None
                snapshot = await self._catalog.resolve(call, deadline)

    async def _run(
        self,
        call: CallRequest,
        snapshot: FunctionSnapshot,
        lease: Lease,
        deadline: float | None,
        began: float,
        sent: float,
    ) -> CallResult:
        try:
            answer = await self.send(call, snapshot, lease, deadline, sent)
        except BaseException:
            self.finish(call, snapshot, lease, gone(), began, sent)
            raise
        result = self.finish(call, snapshot, lease, answer, began, sent)
        if (refusal := refusal_of(answer, snapshot)) is not None:
            raise refusal
        return result

    async def _stream(
        self,
        call: CallRequest,
        snapshot: FunctionSnapshot,
        lease: Lease,
        deadline: float | None,
        began: float,
        sent: float,
        sink: Sink,
    ) -> CallResult:
        """As :meth:`_run`. The record says how much there was of the stream, not what."""
        counted = Counted(sink)
        try:
            sink.started(snapshot.version, lease.boot is not None)
            answer = await self.send(call, snapshot, lease, deadline, sent, counted)
        except BaseException:
            self.finish(call, snapshot, lease, gone(), began, sent)
            raise
        result = self.result(call, snapshot, lease, answer, began, sent)
        self.record(call, snapshot, counted.recorded(result))
        if (refusal := refusal_of(answer, snapshot)) is not None:
            raise refusal
        return result

    def send(
        self,
        call: CallRequest,
        snapshot: FunctionSnapshot,
        lease: Lease,
        deadline: float | None,
        sent: float,
        sink: Sink | None = None,
    ) -> Awaitable[WorkerResult]:
        """The call goes to its instance, once."""
        limit = sent + snapshot.timeout_s
        if deadline is not None and deadline < limit:
            limit = deadline
        member = lease.member
        deadline_ms = int((self._clock.unix() + limit - sent) * 1000)
        context = member.pool.context.encode(
            call.request_id,
            deadline_ms,
            call.traceparent,
            call.tracestate,
            call.attempt,
            call.chain,
            streaming=sink is not None,
            hops=call.hops,
        )
        if sink is None:
            return member.instance.channel.call(WorkerCall(call.request_id, call.payload, context, limit))
        return member.instance.channel.call(
            WorkerCall(
                call.request_id, call.payload, context, limit, sink, snapshot.stream_idle_s, self._stream_limit()
            )
        )

    def finish(
        self,
        call: CallRequest,
        snapshot: FunctionSnapshot,
        lease: Lease,
        answer: WorkerResult,
        began: float,
        sent: float,
    ) -> CallResult:
        """Give the slot back and record the call."""
        result = self.result(call, snapshot, lease, answer, began, sent)
        self.record(call, snapshot, result)
        return result

    def result(
        self,
        call: CallRequest,
        snapshot: FunctionSnapshot,
        lease: Lease,
        answer: WorkerResult,
        began: float,
        sent: float,
    ) -> CallResult:
        """Give the slot back."""
        ended = self.now()
        member = lease.member
        if member.instance.channel.usable:
            lease.release(ended, ended - sent)
        else:
            error = answer.error
            lease.retire(ended, _INTENDED.get(error.type, "crashed") if error is not None else "crashed")
        boot = lease.boot
        phases = _phases(boot, began, sent, ended)
        return CallResult(
            request_id=call.request_id,
            version=snapshot.version,
            output=answer.output,
            error=answer.error,
            duration_us=int((ended - began) * 1e6),
            cold_start=boot is not None,
            instance_id=member.instance.instance_id,
            source="warm" if boot is None else boot.source,
            phases=phases,
            stdout=answer.stdout if boot is None else boot.stdout + answer.stdout,
            stderr=answer.stderr if boot is None else boot.stderr + answer.stderr,
        )

    def not_loaded(self, call: CallRequest, failure: LoadFailed, began: float) -> CallResult:
        """The user's code does not load: an error of the function, with what it printed."""
        ended = self.now()
        snapshot = failure.snapshot
        times = failure.times
        result = CallResult(
            request_id=call.request_id,
            version=snapshot.version,
            output=None,
            error=failure.error,
            duration_us=int((ended - began) * 1e6),
            cold_start=True,
            instance_id=failure.instance_id,
            source=times.source,
            phases=_phases(times, began, ended, ended),
            stdout=times.stdout,
            stderr=times.stderr,
            loaded=False,
        )
        self.record(call, snapshot, result)
        return result

    # Fleet

    async def instances(self, scope: Scope, function: str) -> Sequence[InstanceInfo]:
        return self._fleet.instances(scope, function)

    def stats(self) -> dict[str, Any]:
        """The fleet's numbers and ``active``, the calls in this process."""
        return {"active": self.active, **self._fleet.stats()}


def _deadline(call: CallRequest) -> float | None:
    """Monotonic; the caller's own."""
    return None if call.timeout_ms is None else call.received + call.timeout_ms / 1000


def _phases(boot: BootTimes | None, began: float, sent: float, ended: float) -> Phases:
    """Split a call's time. A caller that joined a boot half-way waited for a part of it only: no phase is longer than that."""
    waited = int((sent - began) * 1e6)
    handler = int((ended - sent) * 1e6)
    if boot is None:
        return Phases(waited, 0, 0, handler)
    init = min(boot.init_us, waited)
    instance = min(boot.instance_us, waited - init)
    return Phases(
        waited - init - instance, instance, init, handler, min(boot.import_us, init), min(boot.runtime_us, instance)
    )
