"""Runs of durable executions: work of kind ``durable``.

A run calls the handler with everything that is recorded. It ends with the execution's result, or because the handler waits:
then nothing is held, and the work is due when time or an outsider changes something. A run that is lost is followed by
another, which does again what was not recorded.
"""

import json
import random
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import CallRequest, CallResult
from nova.domain.durable import MAX_CRASHES, MAX_LOST, PAGE_OPERATIONS, Execution, Token, error_text
from nova.domain.durable_protocol import envelope
from nova.domain.identity import Scope
from nova.domain.ports import Invoker
from nova.errors import FunctionError, NovaError
from nova.events.acting import acting_for
from nova.events.refusals import HOPELESS, NOT_YET, never_began
from nova.ids import new_id
from nova.store import durable_runs
from nova.store.db import Connection, Database
from nova.store.durable import DurableStore
from nova.store.durable_rows import KIND
from nova.store.durable_runs import Begun, DurableRunStore
from nova.work import queue
from nova.work.notices import Notices
from nova.work.queue import LeaseLost, WorkItem
from nova.work.runner import Kind

log = structlog.get_logger(__name__)

_FIRST_BYTES: Final = 1 << 20
"""Of results that go to a run with its call; it asks for the rest."""
_BACKOFF_S: Final = (0.2, 30.0)
"""Shortest and longest pause before a run that follows a lost one."""
_GAP_S: Final = 0.001
"""Between claims: people wait for executions."""
_NON_DETERMINISTIC: Final = "Nova.NonDeterministic"


class DurableEvents(Protocol):
    """Hears of what is counted."""

    def execution_ended(self, scope: Scope, status: str) -> None: ...


class DurableRuns:
    """The handler of work of kind ``durable``."""

    def __init__(
        self,
        db: Database,
        invoker: Invoker,
        notices: Notices,
        *,
        events: DurableEvents,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._store = DurableStore(db)
        self._runs = DurableRunStore(db)
        self._invoker = invoker
        self._notices = notices
        self._events = events
        self._clock = clock

    def kind(self, workers: int | Callable[[], int]) -> Kind:
        return Kind(self, workers, max_attempts=None, gap_s=_GAP_S)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        raise AssertionError("executions count their runs themselves")

    async def run(self, item: WorkItem) -> None:
        """One run. Raises :class:`LeaseLost` when the execution was cancelled or taken over meanwhile."""
        begun: Begun | None = item.noun or await self._runs.begin(item.subject, item.fence, PAGE_OPERATIONS)
        if begun is None:
            async with self._db.transaction() as conn:
                await queue.finish(conn, item)
            return
        execution = begun.execution
        if begun.expired:
            await self._end(item, execution, "failed", error=_told("Nova.Timeout", "the execution's time was up"))
        elif execution.lost > MAX_LOST:
            # it took its worker down with it every time: nobody was left to count
            await self._end(item, execution, "failed", error=_told("Nova.WorkerLost", "the run was lost every time"))
        else:
            await self._call(item, begun)

    async def _call(self, item: WorkItem, begun: Begun) -> None:
        execution = begun.execution
        try:
            result = await self._invoker.invoke(self._request(begun))
        except NovaError as refusal:
            await self._refused(item, execution, refusal)
            return
        if result.error is not None:
            # handlers answer with their errors: what failed here is the run
            if not result.loaded:
                await self._end(item, execution, "failed", error=_of(result.error))
            else:
                await self._lost(item, execution, _of(result.error), MAX_CRASHES)
            return
        await self._answered(item, execution, result)

    def _request(self, begun: Begun) -> CallRequest:
        execution = begun.execution
        shown, size = 0, 0
        for operation in begun.operations:
            size += len(operation.result or "") + len(operation.error or "")
            if shown and size > _FIRST_BYTES:
                break
            shown += 1
        request_id = new_id()
        token = Token(request_id, execution.epoch, execution.rev)
        more = begun.more or shown < len(begun.operations)
        return CallRequest(
            request_id=request_id,
            scope=execution.scope,
            function=execution.function,
            payload=envelope(execution, token, begun.operations[:shown], more=more),
            identity=acting_for(execution.caller, execution.scope),
            received=self._clock.monotonic(),
            qualifier=str(execution.version),
            trigger="durable",
            traceparent=execution.traceparent,
            tracestate=execution.tracestate,
            attempt=execution.lost,
            caller=f"durable:{execution.id}",
            chain=execution.chain,
        )

    async def _answered(self, item: WorkItem, execution: Execution, result: CallResult) -> None:
        answer: Any = payload.decode(result.output or b"null")
        status = answer.get("Status") if isinstance(answer, dict) else None
        if status == "SUCCEEDED":
            output = _result(answer.get("Result"))
            if output is None:
                wrong = _told("Nova.InvalidOutput", "the result is not JSON")
                await self._end(item, execution, "failed", error=wrong)
            else:
                await self._end(item, execution, "completed", output=output)
        elif status == "FAILED":
            error = answer.get("Error")
            await self._end(item, execution, "failed", error=_named(error if isinstance(error, dict) else {}))
        elif status == "PENDING":
            await self._suspend(item, execution)
        else:
            wrong = _told(
                "Nova.InvalidOutput", "the handler did not answer as one of a durable function does: no known Status"
            )
            await self._end(item, execution, "failed", error=wrong)

    async def _refused(self, item: WorkItem, execution: Execution, refusal: NovaError) -> None:
        error = _told(f"Nova.{''.join(part.capitalize() for part in refusal.code.split('_'))}", refusal.detail)
        if refusal.status in HOPELESS:
            await self._end(item, execution, "failed", error=error)
        elif refusal.status in NOT_YET and never_began(refusal):
            pause = min(60.0, max(1.0, refusal.retry_after_s or 0)) * random.uniform(1, 1.25)
            await self._again(item, execution, pause, forgive=True)
        else:
            await self._lost(item, execution, error, MAX_LOST)

    async def _lost(self, item: WorkItem, execution: Execution, error: str, most: int) -> None:
        """The run ended without an answer: another one follows, unless ``most`` have been lost in a row."""
        row = await self._store.get(execution.scope, execution.id)
        if row.lost >= most:
            await self._end(item, execution, "failed", error=error)
            return
        shortest, longest = _BACKOFF_S
        pause = min(longest, shortest * 2.0 ** max(0, row.lost - 1)) * random.uniform(0.75, 1.25)
        await self._again(item, execution, pause)

    async def _again(self, item: WorkItem, execution: Execution, pause_s: float, *, forgive: bool = False) -> None:
        async with self._db.transaction() as conn:
            await self._own(conn, item, execution)
            if forgive:
                await durable_runs.forgive(conn, execution.id)
            await queue.release(conn, item, delay_s=pause_s, counts=False)
        self._notices.work(KIND, pause_s)

    async def _suspend(self, item: WorkItem, execution: Execution) -> None:
        """Until time changes an operation, or somebody else does."""
        async with self._db.transaction() as conn:
            fresh = await self._own(conn, item, execution)
            wake_s, awaited = await durable_runs.next_wake(conn, execution.id)
            if not awaited and not fresh:
                # it says that it waits, and there is nothing that it waits for
                delay_s = _BACKOFF_S[0] * 2.0**execution.lost
            elif fresh:
                await durable_runs.forgive(conn, execution.id)
                delay_s = 0.0
            else:
                delay_s = await durable_runs.suspend(conn, execution.id, wake_s)
            await queue.release(conn, item, delay_s=delay_s, counts=False)
        self._notices.work(KIND, delay_s)

    async def _end(
        self, item: WorkItem, execution: Execution, status: str, *, output: str | None = None, error: str | None = None
    ) -> None:
        work = (item.id, item.owner, item.fence)
        if not await self._runs.end(execution, work, status, output, error):
            raise LeaseLost(item.id)
        self._events.execution_ended(execution.scope, status)

    async def _own(self, conn: Connection, item: WorkItem, execution: Execution) -> bool:
        """Whether something came in since the run began. Raises :class:`LeaseLost`."""
        owned = await durable_runs.own(conn, execution.id, execution.epoch)
        if owned is None:
            raise LeaseLost(item.id)
        return owned[2]


def _told(kind: str, message: str) -> str:
    return error_text({"ErrorType": kind, "ErrorMessage": message})


def _of(error: FunctionError) -> str:
    return error_text({"ErrorType": error.type, "ErrorMessage": error.message, "StackTrace": list(error.stack)})


def _named(error: dict[str, Any]) -> str:
    """What was found by the protocol's library, or here under its hands, has one name."""
    kind, message = str(error.get("ErrorType") or ""), str(error.get("ErrorMessage") or "")
    if kind.endswith("NonDeterministicExecutionError") or _NON_DETERMINISTIC in message:
        error = {**error, "ErrorType": _NON_DETERMINISTIC}
    return error_text(error)


def _result(text: Any) -> str | None:
    """The result as JSON; None when it is none, or cannot be kept."""
    if text is None or text == "":
        return "null"
    if not isinstance(text, str):
        return None
    try:
        json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        return None
    return text


def _not_json(name: str) -> None:
    raise ValueError(name)
