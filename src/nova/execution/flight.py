"""A call without a task: it waits in a pool's queue, is sent, and ends, each time in somebody's callback.

The steps are the executor's, the same that :meth:`~nova.execution.executor.Executor.invoke` takes in a coroutine.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct

from nova.domain.call import CallRequest, CallResult
from nova.domain.function import FunctionSnapshot
from nova.errors import FunctionError, NovaError, as_refusal, internal
from nova.execution.backends.base import WorkerResult
from nova.execution.channel_call import Call
from nova.execution.pool import Pool
from nova.execution.slots import Lease, LoadFailed, PoolMoved, Waiter

if TYPE_CHECKING:
    from nova.execution.executor import Executor

log = structlog.get_logger(__name__)

Done = Callable[[CallResult | NovaError], None]
"""Takes the end of a call; runs inside the callback that learns it, and must not raise."""

_REFUSALS = {"Nova.Timeout": "timeout", "Nova.Cancelled": "cancelled", "Nova.InstanceLost": "instance_lost"}
"""Errors of a worker that are not the function's own: the caller gets them as refusals."""


class Flight(Struct, eq=False):
    """A call under way. ``done`` hears of its end exactly once, unless it is cancelled before."""

    _executor: "Executor"
    _call: CallRequest
    _snapshot: FunctionSnapshot
    _began: float
    deadline: float | None
    _done: Done | None
    _queued: tuple[Pool, Waiter] | None = None
    _lease: Lease | None = None
    _sent: float = 0.0
    _work: "asyncio.Future[WorkerResult] | asyncio.Task[CallResult] | None" = None

    def queue(self, pool: Pool, waiter: Waiter) -> None:
        """Wait for a slot: it comes as a callback, and so does what comes in its place."""
        self._queued = pool, waiter
        waiter.taken, waiter.refused = self.board, self._turned_away

    def board(self, lease: Lease) -> None:
        """A slot is there: send the call. Its pool is at work: what goes wrong is put right after it."""
        self._queued = None
        now = self._executor.now()
        late = (self.deadline is not None and self.deadline <= now) or self._executor.doubts(self._call)
        if late or not lease.member.instance.channel.usable:
            asyncio.get_running_loop().call_soon(self._give_back, lease)
            return
        self._lease, self._sent = lease, now
        try:
            self._watch(self._executor.send(self._call, self._snapshot, lease, self.deadline, now))
        except Exception as exc:
            log.exception("a call could not be sent", request_id=self._call.request_id)
            asyncio.get_running_loop().call_soon(self._not_sent, lease, as_refusal(exc) or internal())

    def _give_back(self, lease: Lease) -> None:
        """The slot is of no use; the coroutine goes on, which waits for another or says why the call does not begin."""
        now = self._executor.now()
        if lease.member.instance.channel.usable:
            lease.abandon(now)
        else:
            lease.retire(now, "lost")
        if self._done is not None:
            self._start_over()

    def _not_sent(self, lease: Lease, refusal: NovaError) -> None:
        lease.retire(self._executor.now(), "crashed")
        self._end(refusal)

    def _watch(self, answer: Awaitable[WorkerResult]) -> None:
        """Hear of the end: from the worker's own callback where the channel offers it."""
        if isinstance(answer, Call):
            self._work = answer
            answer.listen(self._landed)
        else:
            self._work = asyncio.ensure_future(answer)
            self._work.add_done_callback(self._resolved)

    def _resolved(self, answer: "asyncio.Future[WorkerResult]") -> None:
        if not answer.cancelled():
            self._landed(answer.result())

    def _landed(self, answer: WorkerResult) -> None:
        """Answer first, then keep the record. Never raises: the worker's line goes on."""
        done, self._done = self._done, None
        if done is None or self._lease is None:
            return
        executor = self._executor
        try:
            result = executor.result(self._call, self._snapshot, self._lease, answer, self._began, self._sent)
            done(refusal_of(answer, self._snapshot) or result)
            executor.record(self._call, self._snapshot, result)
        except Exception:
            log.exception("a call's end was lost", request_id=self._call.request_id)
        finally:
            executor.leave()

    def _turned_away(self, refusal: Exception) -> None:
        """The queue ended without a slot."""
        self._queued = None
        if self._done is None:
            return
        if isinstance(refusal, PoolMoved):
            self._start_over()
        elif isinstance(refusal, LoadFailed):
            self._end(self._executor.not_loaded(self._call, refusal, self._began))
        elif isinstance(refusal, NovaError):
            self._executor.refused(self._call.scope, self._call.function, refusal.code)
            self._end(refusal)
        else:
            log.error("a call broke off in its queue", request_id=self._call.request_id, exc_info=refusal)
            self._end(as_refusal(refusal) or internal())

    def _start_over(self) -> None:
        """What comes now has to wait for more than a slot."""
        work = asyncio.ensure_future(self._executor.invoke(self._call))
        self._work = work
        work.add_done_callback(self._invoked)

    def _invoked(self, work: "asyncio.Task[CallResult]") -> None:
        if work.cancelled():
            return
        failure = work.exception()
        if failure is None:
            self._end(work.result())
        elif isinstance(failure, NovaError):
            self._end(failure)
        else:
            log.error("call failed", request_id=self._call.request_id, exc_info=failure)
            self._end(as_refusal(failure) or internal())

    def _end(self, outcome: CallResult | NovaError) -> None:
        done, self._done = self._done, None
        if done is not None:
            try:
                done(outcome)
            finally:
                self._executor.leave()

    def cancel(self) -> None:
        """The caller went away, wherever its call is; ``done`` hears nothing. Nothing happens after the end."""
        if self._done is None:
            return
        self._done = None
        executor = self._executor
        if self._queued is not None:
            pool, waiter = self._queued
            pool.leave(waiter, executor.now())
        elif self._work is not None:
            self._work.cancel()
            if self._lease is not None:
                executor.finish(self._call, self._snapshot, self._lease, gone(), self._began, self._sent)
        executor.leave()


def gone() -> WorkerResult:
    """The end of a call whose caller left."""
    return WorkerResult(None, FunctionError("Nova.Cancelled", "the caller went away"))


def refusal_of(answer: WorkerResult, snapshot: FunctionSnapshot) -> NovaError | None:
    """What the caller gets instead of a result when the function is not to blame."""
    if answer.error is None or (code := _REFUSALS.get(answer.error.type)) is None:
        return None
    return NovaError(code, answer.error.message, extra={"version": snapshot.version})
