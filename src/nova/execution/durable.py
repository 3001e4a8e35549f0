"""Durable executions at the host: calls of durable functions begin one, and what their runs write goes to PostgreSQL.

The instance speaks the public Lambda durable-execution protocol: ``CheckpointDurableExecution`` and
``GetDurableExecutionState``. A checkpoint is answered when it is committed. A lone step is committed on a connection that is
kept for that; where there is none free, checkpoints of one moment share a transaction.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.asyncs import MAX_KEY
from nova.domain.call import CallRequest, CallResult, Trigger
from nova.domain.durable import (
    MAX_LIFE_S,
    PAGE_OPERATIONS,
    Execution,
    Operation,
    Token,
    execution_of,
    updates,
)
from nova.domain.durable_protocol import seconds, shown_operation
from nova.domain.function import FunctionSnapshot
from nova.errors import FunctionError, NovaError, invalid
from nova.execution.guest_desk import Reply
from nova.ids import new_id
from nova.store.durable import DurableStore, NewExecution, Taken
from nova.store.durable_commits import StepCommits
from nova.store.durable_rows import KIND
from nova.store.durable_runs import Begun, Checkpoint, DurableRunStore, Written
from nova.store.durable_waits import DurableWaits
from nova.store.work import NOBODY
from nova.work.grouping import GroupCommit
from nova.work.handover import Handover
from nova.work.notices import Notices
from nova.work.queue import WorkItem

_NOBODY_WAITS: Final[frozenset[Trigger]] = frozenset({"async", "schedule", "event", "trigger"})
"""Calls of these kinds are answered when the execution has begun."""
_AWAY_S: Final = 20.0
"""A checkpoint waits so long for a database that is away: less than a lease, within which another run begins."""
_PAGE_CHARACTERS: Final = 1 << 20
"""Of results in one page of operations; an answer is bounded, and ten thousand operations keep up to 2.5 GB."""
_JSON: Final = {"Content-Type": "application/json"}
_ERRORS: Final = {413: "InvalidParameterValueException", 429: "TooManyRequestsException"}


class DurableCalls:
    """What the executor does with calls of durable functions, and the guest API with what their runs ask."""

    def __init__(
        self,
        store: DurableStore,
        runs: DurableRunStore,
        steps: StepCommits,
        waits: DurableWaits,
        notices: Notices,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._runs = runs
        self._steps = steps
        self._notices = notices
        self._clock = clock
        self.waits = waits
        self._handover: Handover | None = None
        self._starts: GroupCommit[NewExecution, Execution | str] = GroupCommit(
            "durable starts", self._start, writers=1, weigh=lambda new: len(new.input)
        )
        self._checkpoints: GroupCommit[Checkpoint, Written] = GroupCommit(
            "checkpoints", self._runs.checkpoint, weigh=_weight
        )

    def hand_to(self, handover: Handover) -> None:
        """From now on executions may run here that begin here, without a claim."""
        self._handover = handover

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        """Whatever was taken is committed and answered."""
        await self._starts.close()
        await self._steps.close()
        await self._checkpoints.close()

    # Calls

    async def call(self, call: CallRequest, snapshot: FunctionSnapshot, deadline: float | None) -> CallResult:
        """Begin an execution, and wait for its end if the caller does. Raises NovaError: ``timeout`` (with
        ``execution_id``: it goes on), ``idempotency_conflict``, ``queue_full``, ``dependency_unavailable``."""
        began = self._clock.monotonic()
        started = await self.begin(call, snapshot)
        execution_id = started if isinstance(started, str) else started.id
        if call.trigger in _NOBODY_WAITS:
            told = payload.encode({"execution_id": execution_id, "status": "running"})
            return self._result(call, snapshot, began, output=told)
        limit = began + snapshot.timeout_s
        until = limit if deadline is None else min(limit, deadline)
        ended = await self.waits.end(call.scope, execution_id, until)
        if ended.ended_at is None:
            detail = "the durable execution has not ended within the call's time; it goes on"
            raise NovaError("timeout", detail, extra={"execution_id": execution_id})
        return self._result(call, snapshot, began, output=_output(ended), error=_error(ended))

    async def begin(
        self, call: CallRequest, snapshot: FunctionSnapshot, name: str | None = None, life_s: float = MAX_LIFE_S
    ) -> Execution | str:
        """The id of a new execution, or the one that has its name. Committed when this returns."""
        name = name or call.idempotency_key or (call.caller if _is_one(call.caller) else None)
        if name is not None and len(name) > MAX_KEY:
            raise invalid("execution_id", f"at most {MAX_KEY} characters")
        new = NewExecution(
            id=new_id(),
            scope=call.scope,
            function_id=snapshot.function_id,
            function=snapshot.name,
            version=snapshot.version,
            name=name,
            input=call.payload.decode(),
            caller=call.identity.subject,
            source=call.caller or call.trigger,
            chain=call.chain,
            traceparent=call.traceparent,
            tracestate=call.tracestate,
            life_s=life_s,
        )
        return await self._starts.put(new)

    async def _start(self, new: Sequence[NewExecution]) -> list[Execution | str | NovaError]:
        handover = self._handover
        taker = NOBODY if handover is None else await handover.reserve(len(new))
        leased_at, items = self._clock.monotonic(), list[WorkItem]()
        try:
            answers, taken = await self._store.start(new, taker)
            items = [_item(one, taker.owner) for one in taken]
        finally:  # callers are answered before their executions run
            if handover is not None:
                asyncio.get_running_loop().call_soon(handover.take, taker, items, leased_at)
        if sum(isinstance(answer, str) for answer in answers) > len(items):
            self._notices.work(KIND)
        return answers

    def _result(
        self,
        call: CallRequest,
        snapshot: FunctionSnapshot,
        began: float,
        *,
        output: bytes | None = None,
        error: FunctionError | None = None,
    ) -> CallResult:
        took = int((self._clock.monotonic() - began) * 1e6)
        return CallResult(call.request_id, snapshot.version, output, error, took, cold_start=False, instance_id="")

    # Runs

    async def checkpoint(self, snapshot: FunctionSnapshot, arn: str, body: bytes) -> Reply:
        """``CheckpointDurableExecution``. What is refused is told as the protocol does."""
        try:
            token, one = _read(snapshot, arn, body)
            if not one.updates:
                await self._runs.ripen(one.execution, one.function_id, one.epoch)
            return _told(token, one, await self._written(one))
        except NovaError as error:
            return refused(error)

    def step(self, snapshot: FunctionSnapshot, arn: str, body: bytes, done: Callable[[Reply | None], None]) -> bool:
        """The same for a lone step that has succeeded, in callbacks alone; the answer does not repeat it. False, or None later:
        it has to go the other way, which is right whatever was committed here."""
        try:
            token, one = _read(snapshot, arn, body)
        except NovaError:
            return False

        def committed(rev: int | None) -> None:
            # a revision further on: somebody else changed something, which the answer has to tell
            done(_told(token, one, Written(rev, ())) if rev == token.seen + 1 else None)

        return self._steps.commit(one, committed)

    async def _written(self, one: Checkpoint) -> Written:
        """Commit in the general way. While the database is away the run waits for it: to write again what may be recorded
        already changes nothing, but that an attempt of a step would count twice."""
        try:
            return await self._checkpoints.put(one)
        except NovaError as error:
            if not _is_away(error) or any(update.status == "PENDING" for update in one.updates):
                raise
        return await _patient.copy()(self._checkpoints.put, one)

    async def operations(self, snapshot: FunctionSnapshot, head: Mapping[str, Any]) -> Reply:
        """``GetDurableExecutionState``: a page of operations in the order of their recording."""
        try:
            token = Token.of(str(head.get("token", "")))
            execution_id = execution_of(str(head.get("arn", "")))
            marker, most = _number(head, "marker", 0), _number(head, "max_items", PAGE_OPERATIONS)
            limit = min(max(most, 1), PAGE_OPERATIONS)
            found = await self._runs.operations(
                execution_id, snapshot.function_id, token.epoch, after=marker, limit=limit + 1
            )
        except NovaError as error:
            return refused(error)
        count = min(_fitting(found), limit)
        shown = [shown_operation(execution_id, operation, seconds) for operation in found[:count]]
        answer: dict[str, Any] = {"Operations": shown}
        if len(found) > count:
            answer["NextMarker"] = str(found[count - 1].place)
        return Reply(200, payload.encode(answer), _JSON)


def _read(snapshot: FunctionSnapshot, arn: str, body: bytes) -> tuple[Token, Checkpoint]:
    """Raises NovaError for what is none."""
    given = _object(body)
    token = Token.of(str(given.get("CheckpointToken", "")))
    changes = updates(given.get("Updates") or [])
    one = Checkpoint(execution_of(arn), snapshot.function_id, token.epoch, token.seen, snapshot.scope, changes)
    return token, one


def _told(token: Token, one: Checkpoint, written: Written) -> Reply:
    following = Token(token.request_id, token.epoch, written.rev)
    shown = [shown_operation(one.execution, operation, seconds) for operation in written.changed]
    answer = {"CheckpointToken": following.text(), "NewExecutionState": {"Operations": shown}}
    return Reply(200, payload.encode(answer), _JSON)


def _item(taken: Taken, owner: str) -> WorkItem:
    begun = Begun(taken.execution, expired=False, operations=(), more=False)
    return WorkItem(taken.work_id, KIND, taken.execution.scope, taken.execution.id, {}, 1, 1, owner, noun=begun)


def _is_away(error: BaseException) -> bool:
    return isinstance(error, NovaError) and error.code == "dependency_unavailable"


_patient: Final = AsyncRetrying(
    retry=retry_if_exception(_is_away),
    wait=wait_exponential(multiplier=0.05, max=1) + wait_random(0, 0.1),
    stop=stop_after_delay(_AWAY_S),
    reraise=True,
)


def _fitting(operations: Sequence[Operation]) -> int:
    """How many of them one page holds; one at least."""
    size = 0
    for number, operation in enumerate(operations):
        size += len(operation.result or "") + len(operation.error or "")
        if size > _PAGE_CHARACTERS and number:
            return number
    return len(operations)


def refused(error: NovaError) -> Reply:
    """A refusal as the protocol's clients read them."""
    kind = "ServiceException" if error.status >= 500 else _ERRORS.get(error.status, "InvalidParameterValueException")
    body = {"Type": "User" if error.status < 500 else "Service", "message": error.detail, "Nova": error.code}
    return Reply(error.status, payload.encode(body), {**_JSON, "x-amzn-ErrorType": kind})


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = payload.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise NovaError("invalid_json", "a checkpoint is a JSON object")
    for name in given:
        if name not in ("CheckpointToken", "Updates", "ClientToken"):
            raise NovaError("unknown_field", f"{name[:64]}: there is no such member of a checkpoint")
    return given


def _number(head: Mapping[str, Any], name: str, default: int) -> int:
    text = str(head.get(name) or default)
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise invalid(name, "a whole number")
    return int(text)


def _is_one(caller: str | None) -> bool:
    """What called is one thing that calls once, however often it has to try: a job, or a place in another execution."""
    return caller is not None and caller.startswith(("async:", "durable:"))


def _output(execution: Execution) -> bytes | None:
    return None if execution.status != "completed" else (execution.output or "null").encode()


def _error(execution: Execution) -> FunctionError | None:
    if execution.status == "completed":
        return None
    told = payload.decode(execution.error or "{}")
    return FunctionError(
        str(told.get("ErrorType", "Error")), str(told.get("ErrorMessage", "")), tuple(told.get("StackTrace") or ())
    )


def _weight(checkpoint: Checkpoint) -> int:
    return sum(len(update.result or "") + len(update.error or "") for update in checkpoint.updates)
